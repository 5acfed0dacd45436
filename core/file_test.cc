#include "core/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <filesystem>
#include <fstream>

namespace cadre {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class File : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + fmt::format("/file_test.{}", getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  size_t Names() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {}));
  }
  std::string folder_;
};

TEST_F(File, WritesWholeAndReadsBack) {
  const std::string path = folder_ + "/a";
  ASSERT_TRUE(WriteFileAtomic(path, "old").ok());
  ASSERT_TRUE(WriteFileAtomic(path, std::string("n\0w", 3)).ok());
  EXPECT_EQ(*ReadFile(path), std::string("n\0w", 3));
  EXPECT_EQ(Names(), 1);
}

TEST_F(File, AnUncommittedWriterLeavesTheOldFileAlone) {
  const std::string path = folder_ + "/a";
  ASSERT_TRUE(WriteFileAtomic(path, "old").ok());
  {
    auto first = AtomicFileWriter::Create(path);
    auto second = AtomicFileWriter::Create(path);
    ASSERT_TRUE(first.ok() && second.ok());
    ASSERT_TRUE(first->Append("new").ok());
    AtomicFileWriter moved = *std::move(first);
    ASSERT_TRUE(moved.Append("er").ok());
    EXPECT_EQ(Names(), 3);
  }
  EXPECT_EQ(Names(), 1);
  EXPECT_EQ(*ReadFile(path), "old");
}

TEST_F(File, WriteAtOverwrites) {
  auto writer = AtomicFileWriter::Create(folder_ + "/a");
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->Append("0123456789").ok());
  ASSERT_TRUE(writer->WriteAt(3, "xy").ok());
  ASSERT_TRUE(writer->Append("!").ok());
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_EQ(*ReadFile(folder_ + "/a"), "012xy56789!");
}

TEST_F(File, ErrorsNameThePath) {
  const absl::Status missing = ReadFile(folder_ + "/none").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(missing), HasSubstr(folder_ + "/none: cannot open: No such file"));
  EXPECT_EQ(ReadFile(folder_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MappedFile::Open(folder_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteFileAtomic(folder_ + "/no/a", "x").code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteFileAtomic(folder_ + "/a", "12345").ok());
  EXPECT_THAT(Message(ReadFile(folder_ + "/a", 4).status()), HasSubstr("5 bytes, at most 4"));
  EXPECT_EQ(ReadFile("/dev/zero").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(File, AFullDiskIsNamed) {
  const int full = open("/dev/full", O_WRONLY);
  ASSERT_GE(full, 0);
  const absl::Status status = WriteAll(full, "/dev/full", "x");
  close(full);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Message(status), "/dev/full: cannot write: No space left on device");
}

// A file size limit stands in for a disk that fills up half-way.
TEST_F(File, AFailedReplacementKeepsTheOldFile) {
  const std::string path = folder_ + "/a";
  ASSERT_TRUE(WriteFileAtomic(path, "old").ok());
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 4096;
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status status = WriteFileAtomic(path, std::string(10000, 'x'));
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr(path));
  EXPECT_EQ(*ReadFile(path), "old");
  EXPECT_EQ(Names(), 1);
}

TEST_F(File, FillsAFileInPlace) {
  const std::string path = folder_ + "/a";
  ASSERT_TRUE(WriteFileAtomic(path, "longer than what follows").ok());
  auto file = InPlaceFile::Create(path, 6);
  ASSERT_TRUE(file.ok()) << Message(file.status());
  EXPECT_EQ(*ReadFile(path), std::string(6, '\0'));
  auto other = InPlaceFile::Open(path);
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE(other->WriteAt(3, "def").ok());
  ASSERT_TRUE(file->WriteAt(0, "abc").ok());
  ASSERT_TRUE(other->Sync().ok());
  EXPECT_EQ(*ReadFile(path), "abcdef");
  EXPECT_THAT(Message(InPlaceFile::Open(folder_ + "/b").status()), HasSubstr("cannot open"));
  // Far more than any disk has: nothing is left of it.
  auto huge = InPlaceFile::Create(folder_ + "/b", int64_t{1} << 61);
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted) << Message(huge.status());
  EXPECT_EQ(Names(), 1);
}

TEST_F(File, AMappingSurvivesMovesAndReplacement) {
  const std::string path = folder_ + "/a";
  ASSERT_TRUE(WriteFileAtomic(path, "abc").ok());
  auto mapped = MappedFile::Open(path);
  ASSERT_TRUE(mapped.ok());
  const std::byte* data = mapped->bytes().data();
  MappedFile moved = *std::move(mapped);
  ASSERT_TRUE(WriteFileAtomic(path, "xyz").ok());
  EXPECT_EQ(moved.bytes().data(), data);
  EXPECT_EQ(static_cast<char>(moved.bytes()[0]), 'a');
  ASSERT_TRUE(WriteFileAtomic(path, "").ok());
  EXPECT_TRUE(MappedFile::Open(path)->bytes().empty());
}

TEST_F(File, PiecesAndAFileThatShrinks) {
  const std::string path = folder_ + "/a";
  ASSERT_TRUE(WriteFileAtomic(path, "0123456789").ok());
  auto opened = FileReader::Open(path);
  ASSERT_TRUE(opened.ok());
  const FileReader file = *std::move(opened);
  EXPECT_EQ(file.size(), 10);
  std::array<std::byte, 4> piece;
  ASSERT_TRUE(file.ReadAt(6, piece).ok());
  EXPECT_EQ(static_cast<char>(piece[3]), '9');
  fs::resize_file(path, 8);
  const absl::Status status = file.ReadAt(6, piece);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Message(status), path + ": ends at byte 8; it had 10 when it was opened");
  EXPECT_EQ(FileReader::Open(folder_).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cadre
