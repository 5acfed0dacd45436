#include "parallel/flight_recorder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "core/process_stat.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class FlightRecord : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + fmt::format("/flight_recorder_test.{}", getpid());
    fs::create_directories(folder_);
    path_ = folder_ + "/rank-0";
  }
  void TearDown() override { fs::remove_all(folder_); }
  // Overwrites eight bytes of the file.
  void Poke(std::streamoff offset, uint64_t value) const {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(offset).write(reinterpret_cast<const char*>(&value), sizeof value);
  }
  std::string folder_, path_;
};

TEST_F(FlightRecord, SaysWhatTheRankDid) {
  auto recorder = FlightRecorder::Create(path_, 3);
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  struct stat info;
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  (*recorder)->SetStep(17);
  (*recorder)->SetActivity("forward", 2);
  const uint64_t first = (*recorder)->Begin("tp", "all_reduce", "layer 2 mlp", 40, 4096);
  const uint64_t second = (*recorder)->Begin("dp", "reduce_scatter", "bucket 1", 7, 1 << 20);
  (*recorder)->SetState(first, OperationState::kAwaited);
  (*recorder)->SetState(first, OperationState::kDone);
  (*recorder)->SetState(second, OperationState::kAwaited);

  const auto read = ReadFlightRecord(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->rank, 3);
  EXPECT_EQ(read->pid, getpid());
  EXPECT_EQ(read->start_time, ReadProcessStat(getpid())->start_time);
  EXPECT_EQ(read->step, 17);
  EXPECT_GT(read->step_began_ns, 0);
  EXPECT_TRUE(read->step_durations_ns.empty());
  EXPECT_EQ(read->activity, "forward");
  EXPECT_EQ(read->layer, 2);
  ASSERT_EQ(read->operations.size(), 2u);
  const OperationRecord& done = read->operations[0];
  EXPECT_EQ(done.id, 1u);
  EXPECT_EQ(done.state, OperationState::kDone);
  EXPECT_EQ(done.sequence, 40u);
  EXPECT_EQ(done.group, "tp");
  EXPECT_EQ(done.operation, "all_reduce");
  EXPECT_EQ(done.label, "layer 2 mlp");
  EXPECT_EQ(done.bytes, 4096u);
  EXPECT_GE(done.finished_ns, done.queued_ns);
  const OperationRecord& running = read->operations[1];
  EXPECT_EQ(running.id, 2u);
  EXPECT_EQ(running.state, OperationState::kAwaited);
  EXPECT_EQ(running.finished_ns, 0);
  EXPECT_GE(read->progress_ns, done.finished_ns);
}

TEST_F(FlightRecord, KeepsTheNewestOperationsAndSteps) {
  auto recorder = FlightRecorder::Create(path_, 0);
  ASSERT_TRUE(recorder.ok());
  constexpr int kMany = FlightRecorder::kRecords + 500;
  for (int i = 0; i < kMany; ++i)
    (*recorder)->Begin("tp", "barrier", "", static_cast<uint32_t>(i), 0);
  (*recorder)->SetState(1, OperationState::kFailed);  // overwritten long ago
  for (int step = 0; step < 100; ++step) (*recorder)->SetStep(step);
  (*recorder)->SetStep(99);  // no change
  const auto read = ReadFlightRecord(path_);
  ASSERT_TRUE(read.ok());
  ASSERT_EQ(read->operations.size(), size_t{FlightRecorder::kRecords});
  for (size_t i = 0; i < read->operations.size(); ++i) {
    EXPECT_EQ(read->operations[i].id, 501 + i);
    EXPECT_EQ(read->operations[i].state, OperationState::kQueued);
  }
  EXPECT_EQ(read->step, 99);
  EXPECT_EQ(read->step_durations_ns.size(), 32u);
}

TEST_F(FlightRecord, TextsAreCutAndCannotCommandATerminal) {
  auto recorder = FlightRecorder::Create(path_, 0);
  ASSERT_TRUE(recorder.ok());
  (*recorder)->Begin(std::string(100, 'g'), "\x1b[2J\n", std::string(1000, 'l'), 0, 0);
  (*recorder)->SetActivity(std::string(100, 'a'), -1);
  const auto read = ReadFlightRecord(path_);
  ASSERT_TRUE(read.ok());
  ASSERT_EQ(read->operations.size(), 1u);
  EXPECT_EQ(read->operations[0].group, std::string(16, 'g'));
  EXPECT_EQ(read->operations[0].operation, "?[2J?");
  EXPECT_EQ(read->operations[0].label, std::string(96, 'l'));
  EXPECT_EQ(read->activity, std::string(32, 'a'));
}

TEST_F(FlightRecord, OutlivesItsProcess) {
  const pid_t child = fork();
  if (child == 0) {
    auto recorder = FlightRecorder::Create(path_, 5);
    (*recorder)->Begin("pp", "send", "stage 1", 9, 64);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  const auto read = ReadFlightRecord(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->rank, 5);
  EXPECT_EQ(read->pid, child);
  ASSERT_EQ(read->operations.size(), 1u);
  EXPECT_EQ(read->operations[0].sequence, 9u);
}

TEST_F(FlightRecord, AReaderNeverSeesATornRecord) {
  auto recorder = FlightRecorder::Create(path_, 0);
  ASSERT_TRUE(recorder.ok());
  const auto write = [&](std::stop_token stop, uint32_t begin) {
    for (uint32_t i = begin; !stop.stop_requested(); i += 2) {
      const std::string text = std::to_string(i);
      (*recorder)->SetStep(i);
      (*recorder)->SetActivity(text, static_cast<int>(i % 1000000));
      const uint64_t id = (*recorder)->Begin(text, text, text, i, i);
      (*recorder)->SetState(id, OperationState::kDone);
    }
  };
  std::jthread even(write, 0), odd(write, 1);
  for (int reads = 0; reads < 50; ++reads) {
    const auto read = ReadFlightRecord(path_);
    ASSERT_TRUE(read.ok()) << read.status();
    for (const OperationRecord& record : read->operations) {
      const std::string text = std::to_string(record.sequence);
      ASSERT_EQ(record.group, text);
      ASSERT_EQ(record.operation, text);
      ASSERT_EQ(record.label, text);
      ASSERT_EQ(record.bytes, record.sequence);
      ASSERT_EQ(record.state == OperationState::kDone, record.finished_ns != 0);
    }
    if (!read->activity.empty()) {
      ASSERT_EQ(std::to_string(read->layer), std::to_string(std::stoll(read->activity) % 1000000));
    }
  }
}

TEST_F(FlightRecord, InThisProcessAloneThereIsNoFile) {
  auto recorder = FlightRecorder::Create("", 0);
  ASSERT_TRUE(recorder.ok());
  (*recorder)->SetState((*recorder)->Begin("tp", "barrier", "", 0, 0), OperationState::kDone);
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(FlightRecord, RefusesWhatIsNoRecord) {
  EXPECT_EQ(ReadFlightRecord(path_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadFlightRecord(folder_).status().code(), absl::StatusCode::kInvalidArgument);
  std::ofstream(path_) << "short";
  EXPECT_EQ(ReadFlightRecord(path_).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(FlightRecorder::Create(path_, 0).status().message(), HasSubstr("File exists"));
  EXPECT_FALSE(FlightRecorder::Create(folder_ + "/none/a", 0).ok());
}

TEST_F(FlightRecord, RefusesHostileBytes) {
  ASSERT_TRUE(FlightRecorder::Create(path_, 0).ok());
  const auto size = static_cast<std::streamoff>(fs::file_size(path_));
  ASSERT_TRUE(ReadFlightRecord(path_).ok());
  // Every word of the file in turn is wrong; what is read stays within its bounds or is refused.
  int refused = 0;
  for (std::streamoff offset = 0; offset < 4096; offset += 8) {
    const std::string before = [&] {
      std::ifstream file(path_, std::ios::binary);
      return std::string(std::istreambuf_iterator<char>(file), {});
    }();
    for (const uint64_t value : {uint64_t{2}, ~uint64_t{0}, ~uint64_t{1}}) {
      Poke(offset, value);
      const auto read = ReadFlightRecord(path_);
      if (!read.ok()) {
        EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss);
        ++refused;
        continue;
      }
      EXPECT_GE(read->rank, 0);
      EXPECT_GE(read->layer, -1);
      EXPECT_GE(read->step, -1);
      EXPECT_LE(read->step_durations_ns.size(), 32u);
      EXPECT_LE(read->operations.size(), size_t{FlightRecorder::kRecords});
    }
    std::ofstream(path_, std::ios::binary) << before;
  }
  EXPECT_GT(refused, 3);
  fs::resize_file(path_, static_cast<uintmax_t>(size - 1));
  EXPECT_EQ(ReadFlightRecord(path_).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace cadre
