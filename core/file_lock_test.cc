#include "core/file_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <optional>

#include "core/file.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;

class FileLockTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directory(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  const std::string folder_ = fmt::format("{}/file_lock_{}", testing::TempDir(), getpid());
  const std::string path_ = folder_ + "/lock";
};

TEST_F(FileLockTest, OneAtATime) {
  std::optional<FileLock> first;
  {
    auto lock = FileLock::Take(path_);
    ASSERT_TRUE(lock.ok()) << lock.status();
    first = *std::move(lock);
  }
  const auto second = FileLock::Take(path_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(second.status()),
              HasSubstr(fmt::format("{}: held by process {} on ", path_, getpid())));
  first.reset();
  EXPECT_TRUE(FileLock::Take(path_).ok());
}

// What it is told about who holds it comes from a file that anybody may have written.
TEST_F(FileLockTest, WhoHoldsItIsPrintable) {
  const auto lock = FileLock::Take(path_);
  ASSERT_TRUE(lock.ok());
  std::filesystem::resize_file(path_, 0);
  EXPECT_THAT(Message(FileLock::Take(path_).status()), HasSubstr("held by somebody else"));
  std::filesystem::resize_file(path_, 1 << 20);
  EXPECT_THAT(Message(FileLock::Take(path_).status()), HasSubstr("held by somebody else"));
}

TEST_F(FileLockTest, IsNoWayOut) {
  ASSERT_TRUE(WriteFileAtomic(folder_ + "/target", "kept").ok());
  std::filesystem::create_symlink(folder_ + "/target", path_);
  EXPECT_FALSE(FileLock::Take(path_).ok());
  EXPECT_EQ(*ReadFile(folder_ + "/target"), "kept");
  EXPECT_EQ(FileLock::Take(folder_ + "/none/lock").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace cadre
