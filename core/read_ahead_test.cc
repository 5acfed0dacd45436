#include "core/read_ahead.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <string>

namespace cadre {
namespace {

std::string WriteBytes(const std::string& name, size_t count) {
  std::string bytes(count, '\0');
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<char>(i * 131 >> 3);
  const std::string path = testing::TempDir() + "/" + name;
  EXPECT_TRUE(WriteFileAtomic(path, bytes).ok());
  return path;
}

void DropFromCache(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY);
  ASSERT_EQ(fdatasync(descriptor), 0);
  posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  close(descriptor);
}

TEST(ReadAhead, FillsPiecesInTheirOrder) {
  const std::string path = WriteBytes("read_ahead", 100000);
  const auto file = FileReader::Open(path);
  ASSERT_TRUE(file.ok());
  const std::string whole = *ReadFile(path);
  std::string got(100000, '\0');
  const auto bytes = std::as_writable_bytes(std::span(got));
  ReadAhead reader;
  EXPECT_TRUE(reader.Wait(0).ok());
  uint64_t last = 0;
  for (size_t at = 0; at < 100000; at += 1000) {
    last = reader.Add(
        {.file = &*file, .offset = static_cast<int64_t>(at), .to = bytes.subspan(at, 1000)});
  }
  EXPECT_EQ(last, 100u);
  const uint64_t cached = reader.Add({.file = &*file, .cached = 100000});
  ASSERT_TRUE(reader.Wait(50).ok());
  EXPECT_EQ(got.substr(0, 50000), whole.substr(0, 50000));
  ASSERT_TRUE(reader.Wait(cached).ok());
  EXPECT_EQ(got, whole);
}

TEST(ReadAhead, APieceThatCannotBeReadIsTheErrorOfAllBehindIt) {
  const std::string path = WriteBytes("read_ahead_short", 5000);
  const auto file = FileReader::Open(path);
  ASSERT_TRUE(file.ok());
  std::vector<std::byte> memory(4000);
  ReadAhead reader;
  const uint64_t good = reader.Add({.file = &*file, .offset = 0, .to = memory});
  const uint64_t past = reader.Add({.file = &*file, .offset = 3000, .to = memory});
  const uint64_t behind = reader.Add({.file = &*file, .offset = 0, .to = memory});
  EXPECT_EQ(reader.Wait(past).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(reader.Wait(behind).code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(reader.Wait(good).ok());
}

// Pieces that begin and end anywhere, over several windows, with holes, from a cold cache and from
// a warm one.
TEST(ReadAhead, ReadsPastTheCacheWhatLiesAnywhere) {
  constexpr size_t kBytes = (size_t{40} << 20) + 1234;
  const std::string path = WriteBytes("read_ahead_large", kBytes);
  const std::string whole = *ReadFile(path);
  for (const bool cold : {true, false}) {
    const auto file = FileReader::Open(path);
    ASSERT_TRUE(file.ok());
    if (cold) DropFromCache(path);
    std::string got(kBytes, '\0'), expected(kBytes, '\0');
    const auto bytes = std::as_writable_bytes(std::span(got));
    ReadAhead reader;
    uint64_t last = 0;
    size_t at = 7;
    for (size_t i = 0; at < kBytes; ++i) {
      const size_t count = std::min<size_t>(1 + i * 700001 % 5000000, kBytes - at);
      last = reader.Add(
          {.file = &*file, .offset = static_cast<int64_t>(at), .to = bytes.subspan(at, count)});
      expected.replace(at, count, whole, at, count);
      at += count + (i % 5 == 4 ? 333 : 0);
    }
    ASSERT_TRUE(reader.Wait(last).ok());
    EXPECT_EQ(got == expected, true) << (cold ? "cold" : "warm");
  }
}

TEST(ReadAhead, EndsWithPiecesLeft) {
  const std::string path = WriteBytes("read_ahead_left", 5000);
  const auto file = FileReader::Open(path);
  ASSERT_TRUE(file.ok());
  std::vector<std::byte> memory(5000);
  ReadAhead reader;
  for (int i = 0; i < 1000; ++i) reader.Add({.file = &*file, .offset = 0, .to = memory});
}

}  // namespace
}  // namespace cadre
