#include "training/output_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <sstream>
#include <thread>

namespace cadre {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class OutputLockTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directory(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  auto Lock(milliseconds patience, const std::atomic<bool>* stop = nullptr) {
    return LockOutput(folder_, patience, stop, log_);
  }

  const std::string folder_ = fmt::format("{}/output_lock_{}", testing::TempDir(), getpid());
  std::ostringstream said_;
  spdlog::logger log_{"test", std::make_shared<spdlog::sinks::ostream_sink_mt>(said_)};
};

TEST_F(OutputLockTest, AnotherRunIsNamed) {
  const auto first = Lock(milliseconds(0));
  ASSERT_TRUE(first.ok() && first->has_value());
  EXPECT_EQ(said_.str(), "");
  const auto second = Lock(milliseconds(0));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(second.status()),
              HasSubstr(fmt::format("another run is in the output folder: {}/.lock: held by "
                                    "process {} on ",
                                    folder_, getpid())));
}

TEST_F(OutputLockTest, WaitsForTheEndOfTheOther) {
  auto first = Lock(milliseconds(0));
  ASSERT_TRUE(first.ok());
  std::thread next([&] { EXPECT_TRUE(Lock(std::chrono::minutes(1)).ok()); });
  first->reset();
  next.join();
  EXPECT_TRUE(Lock(milliseconds(0)).ok());
}

TEST_F(OutputLockTest, AStopEndsTheWait) {
  const auto first = Lock(milliseconds(0));
  const std::atomic<bool> stop = true;
  EXPECT_EQ(Lock(std::chrono::minutes(1), &stop).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace cadre
