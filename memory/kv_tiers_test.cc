#include "memory/kv_tiers.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace cadre {
namespace {

constexpr size_t kBlockBytes = 5000;  // two pages on disk
constexpr int64_t kSlot = 8192;

class KvTiersTest : public testing::Test {
 protected:
  void Make(int64_t host, int64_t disk) {
    auto tiers = KvTiers::Create(
        kBlockBytes, {.host_bytes = host * kSlot,
                      .disk_bytes = disk * kSlot,
                      .disk_path = testing::TempDir(),
                      .warn = [this](const std::string& line) { warnings_.push_back(line); }});
    ASSERT_TRUE(tiers.ok()) << Message(tiers.status());
    tiers_ = *std::move(tiers);
  }

  static std::vector<int32_t> Tokens(uint64_t n) { return {static_cast<int32_t>(n), 1}; }
  static PrefixLink Root() { return PrefixIndex::RootLink("root"); }
  static PrefixLink Past(uint64_t n) { return {HashPrefixBlock(Root().hash, Tokens(n)), n}; }

  void Put(uint64_t n) {
    auto bytes = tiers_->NewBuffer();
    std::memset(bytes->data(), static_cast<int>(n), kBlockBytes);
    tiers_->Put({.serial = n, .hash = Past(n).hash, .root = "root", .tokens = Tokens(n)}, bytes);
    Settle();
  }
  void Settle() {
    tiers_->WaitForDisk();
    tiers_->Poll();
  }
  KvTiers::Place Find(uint64_t n, const std::string& root = "root") {
    PrefixLink past{Past(n).hash};
    return tiers_->Find(root, Root(), Tokens(n), &past);
  }
  // Its bytes, whether they are in memory or have to be read.
  bool ComesBack(uint64_t n) {
    if (Find(n) == KvTiers::Place::kDisk) {
      EXPECT_TRUE(tiers_->StartRead(Past(n)));
      Settle();
    }
    if (Find(n) != KvTiers::Place::kMemory) return false;
    const auto [entry, bytes] = tiers_->Take(Past(n));
    EXPECT_EQ(entry.serial, n);
    EXPECT_EQ(Find(n), KvTiers::Place::kNowhere);
    return std::all_of(bytes->data(), bytes->data() + kBlockBytes,
                       [n](std::byte byte) { return byte == static_cast<std::byte>(n); });
  }

  std::unique_ptr<KvTiers> tiers_;
  std::vector<std::string> warnings_;
};

TEST_F(KvTiersTest, MemoryKeepsTheNewest) {
  Make(2, 0);
  for (uint64_t n : {1, 2, 3}) Put(n);
  EXPECT_EQ(Find(1), KvTiers::Place::kNowhere);
  EXPECT_EQ(Find(2, "another root"), KvTiers::Place::kNowhere);
  EXPECT_TRUE(ComesBack(2));
  EXPECT_TRUE(ComesBack(3));
  EXPECT_EQ(tiers_->in_memory(), 0);
}

TEST_F(KvTiersTest, TheOldestGoToDiskAndComeBack) {
  Make(1, 2);
  for (uint64_t n : {1, 2, 3, 4}) Put(n);
  EXPECT_EQ(Find(1), KvTiers::Place::kNowhere);
  EXPECT_EQ(Find(2), KvTiers::Place::kDisk);
  EXPECT_EQ(Find(4), KvTiers::Place::kMemory);
  EXPECT_EQ(tiers_->on_disk(), 2);
  for (uint64_t n : {2, 3, 4}) EXPECT_TRUE(ComesBack(n)) << n;
  EXPECT_EQ(tiers_->on_disk(), 0);
}

// A long prompt pushes its blocks out all at once, faster than any disk writes.
TEST_F(KvTiersTest, ABurstIsKeptWhole) {
  constexpr uint64_t kBurst = 2000;
  Make(0, kBurst);
  std::vector<std::shared_ptr<DiskBuffer>> buffers;
  for (uint64_t n = 1; n <= kBurst; ++n) {
    buffers.push_back(tiers_->NewBuffer());
    std::memset(buffers.back()->data(), static_cast<int>(n), kBlockBytes);
  }
  for (uint64_t n = 1; n <= kBurst; ++n) {
    tiers_->Put({.serial = n, .hash = Past(n).hash, .root = "root", .tokens = Tokens(n)},
                buffers[n - 1]);
  }
  for (uint64_t n = 1; n <= kBurst; ++n) EXPECT_NE(Find(n), KvTiers::Place::kNowhere) << n;
}

TEST_F(KvTiersTest, WhatIsWantedStaysWhenItIsWritten) {
  Make(1, 4);
  for (uint64_t n : {1, 2}) Put(n);
  EXPECT_EQ(Find(1), KvTiers::Place::kDisk);
  EXPECT_EQ(Find(2), KvTiers::Place::kMemory);
  tiers_->Want(Past(2));
  Put(3);
  EXPECT_EQ(tiers_->on_disk(), 2);
  EXPECT_EQ(tiers_->in_memory(), 2);
  EXPECT_EQ(Find(2), KvTiers::Place::kMemory);
  EXPECT_TRUE(ComesBack(2));
  EXPECT_EQ(tiers_->on_disk(), 1);
}

TEST_F(KvTiersTest, AFlippedBitIsAMiss) {
  Make(0, 4);
  for (uint64_t n : {1, 2}) Put(n);
  const int plain = open(fmt::format("/proc/self/fd/{}", tiers_->disk()->fd()).c_str(), O_RDWR);
  ASSERT_GE(plain, 0);
  char byte = 0;
  ASSERT_EQ(pread(plain, &byte, 1, 4999), 1);
  byte ^= 4;
  ASSERT_EQ(pwrite(plain, &byte, 1, 4999), 1);
  close(plain);
  EXPECT_FALSE(ComesBack(1));
  EXPECT_EQ(Find(1), KvTiers::Place::kNowhere);
  EXPECT_TRUE(ComesBack(2));
  EXPECT_TRUE(warnings_.empty()) << "one block is no failing disk";
}

TEST_F(KvTiersTest, ATornFileIsAMiss) {
  Make(0, 4);
  for (uint64_t n : {1, 2}) Put(n);
  ASSERT_EQ(ftruncate(tiers_->disk()->fd(), kSlot + 4096), 0);
  EXPECT_TRUE(ComesBack(1));
  EXPECT_FALSE(ComesBack(2));
}

// A limit on file sizes stands for a full disk.
TEST_F(KvTiersTest, ADiskThatFailsIsOffWithOneLine) {
  Make(1, 8);
  for (uint64_t n : {1, 2}) Put(n);
  EXPECT_EQ(Find(1), KvTiers::Place::kDisk);
  signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit full{kSlot, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &full);
  for (uint64_t n : {3, 4, 5}) Put(n);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_FALSE(tiers_->disk_works());
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("File too large; the disk tier is off"), std::string::npos);
  EXPECT_EQ(Find(1), KvTiers::Place::kNowhere);
  EXPECT_TRUE(ComesBack(5)) << "memory goes on";
}

TEST_F(KvTiersTest, WhatCannotBeIsRefused) {
  EXPECT_EQ(KvTiers::Create(kBlockBytes, {.host_bytes = kSlot - 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto nowhere =
      KvTiers::Create(kBlockBytes, {.disk_bytes = kSlot, .disk_path = "/no/such/folder"});
  EXPECT_EQ(Message(nowhere.status()),
            "kv_disk_cache_path: /no/such/folder: No such file or directory; a folder that files "
            "can be made in is needed");
}

}  // namespace
}  // namespace cadre
