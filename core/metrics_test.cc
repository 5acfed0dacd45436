#include "core/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <limits>

#include "core/file.h"
#include "proto/tensorboard.pb.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Metrics : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + fmt::format("/metrics_test.{}", getpid());
    fs::create_directories(folder_);
    path_ = folder_ + "/metrics.jsonl";
  }
  void TearDown() override { fs::remove_all(folder_); }

  void Lines(std::optional<int64_t> cut, std::vector<int64_t> steps) {
    auto writer = JsonlWriter::Open(path_, cut);
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const int64_t step : steps) {
      const Metric metrics[] = {{"loss", 0.5}};
      ASSERT_TRUE(writer->Write(step, metrics).ok());
    }
  }
  static std::string Line(int64_t step) {
    return fmt::format("{{\"step\":{},\"loss\":0.5}}\n", step);
  }

  std::string folder_;
  std::string path_;
};

TEST_F(Metrics, ValuesKeepTheirDigitsAndTheirOrder) {
  auto writer = JsonlWriter::Open(path_, std::nullopt);
  ASSERT_TRUE(writer.ok());
  const Metric metrics[] = {{"z", 0.1 + 0.2},
                            {"a \"b\"", -3},
                            {"n", std::nan("")},
                            {"i", std::numeric_limits<double>::infinity()},
                            {"e", 1e-300}};
  ASSERT_TRUE(writer->Write(7, metrics).ok());
  EXPECT_EQ(*ReadFile(path_),
            "{\"step\":7,\"z\":0.30000000000000004,\"a \\\"b\\\"\":-3,\"n\":null,\"i\":null,"
            "\"e\":1e-300}\n");
}

// A file size limit stands in for a disk that fills up, and has room again later.
TEST_F(Metrics, ALineThatAFullDiskCutIsTakenBack) {
  auto jsonl = JsonlWriter::Open(path_, std::nullopt);
  auto events = TensorBoardWriter::Create(folder_, "test");
  ASSERT_TRUE(jsonl.ok() && events.ok());
  const Metric metrics[] = {{"loss", 0.5}};
  ASSERT_TRUE(jsonl->Write(1, metrics).ok());
  ASSERT_TRUE(events->Write(1, metrics).ok());
  const std::string recorded = *ReadFile(events->path());
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = Line(1).size() + 10;
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status line = jsonl->Write(2, metrics);
  small.rlim_cur = recorded.size() + 10;
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status event = events->Write(2, metrics);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(line.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(event.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(*ReadFile(events->path()), recorded);
  ASSERT_TRUE(jsonl->Write(3, metrics).ok());
  EXPECT_EQ(*ReadFile(path_), Line(1) + Line(3));
}

TEST_F(Metrics, AResumeCutsBackToItsStep) {
  Lines(std::nullopt, {1, 2, 3, 4});
  Lines(2, {3});
  EXPECT_EQ(*ReadFile(path_), Line(1) + Line(2) + Line(3));
  Lines(std::nullopt, {4});
  EXPECT_EQ(*ReadFile(path_), Line(1) + Line(2) + Line(3) + Line(4));
  Lines(-1, {});
  EXPECT_EQ(*ReadFile(path_), "");
}

TEST_F(Metrics, TornLinesGo) {
  for (const char* torn :
       {"{\"step\":3,\"lo", "{", "{\"step\":3,\"loss\":0.5}", "garbage\n{\"step\":1}\n"}) {
    ASSERT_TRUE(WriteFileAtomic(path_, Line(1) + Line(2) + torn).ok());
    Lines(5, {3});
    EXPECT_EQ(*ReadFile(path_), Line(1) + Line(2) + Line(3)) << torn;
  }
  ASSERT_TRUE(WriteFileAtomic(path_, Line(1) + "{\"st").ok());
  Lines(std::nullopt, {2});
  EXPECT_EQ(*ReadFile(path_), Line(1) + Line(2));
}

TEST_F(Metrics, ErrorsNameTheFile) {
  const auto writer = JsonlWriter::Open(folder_ + "/no/metrics.jsonl", std::nullopt);
  EXPECT_THAT(Message(writer.status()), HasSubstr(folder_ + "/no/metrics.jsonl"));
  EXPECT_THAT(Message(TensorBoardWriter::Create(folder_ + "/no", "x").status()),
              HasSubstr(folder_ + "/no/events.out.tfevents."));
}

TEST_F(Metrics, OnlyRegularFilesAreOpened) {
  fs::create_symlink("/dev/full", folder_ + "/full");
  EXPECT_FALSE(JsonlWriter::Open(folder_ + "/full", std::nullopt).ok());
}

// RFC 3720, B.4.
TEST(Crc32c, KnownValues) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

uint32_t ReadU32(const std::string& bytes, size_t at) {
  uint32_t value;
  std::memcpy(&value, bytes.data() + at, 4);
  return value;
}

uint32_t Unmask(uint32_t masked) {
  const uint32_t rotated = masked - 0xa282ead8u;
  return rotated >> 17 | rotated << 15;
}

TEST_F(Metrics, EventFilesAreTfRecordsOfScalars) {
  auto writer = TensorBoardWriter::Create(folder_, "cadre");
  auto other = TensorBoardWriter::Create(folder_, "cadre");
  ASSERT_TRUE(writer.ok() && other.ok());
  EXPECT_NE(writer->path(), other->path());
  const Metric metrics[] = {{"loss", 1.5}, {"lr", 0.25}};
  ASSERT_TRUE(writer->Write(11, metrics).ok());
  const std::string file = *ReadFile(writer->path());
  std::vector<tensorboard::Event> events;
  for (size_t at = 0; at < file.size();) {
    const size_t length = ReadU32(file, at);
    ASSERT_LE(at + 16 + length, file.size());
    EXPECT_EQ(Unmask(ReadU32(file, at + 8)), Crc32c(file.substr(at, 8)));
    EXPECT_EQ(Unmask(ReadU32(file, at + 12 + length)), Crc32c(file.substr(at + 12, length)));
    ASSERT_TRUE(events.emplace_back().ParseFromString(file.substr(at + 12, length)));
    at += 16 + length;
  }
  ASSERT_EQ(events.size(), 2);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_EQ(events[1].step(), 11);
  EXPECT_GT(events[1].wall_time(), 1.7e9);
  ASSERT_EQ(events[1].summary().value_size(), 2);
  EXPECT_EQ(events[1].summary().value(1).tag(), "lr");
  EXPECT_EQ(events[1].summary().value(1).simple_value(), 0.25);
}

}  // namespace
}  // namespace cadre
