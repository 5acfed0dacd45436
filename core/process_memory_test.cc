#include "core/process_memory.h"

#include <gtest/gtest.h>

#include <sys/mman.h>

#include <cstring>

namespace cadre {
namespace {

TEST(ProcessMemory, SeesWhatIsTouchedAndRemembersIt) {
  constexpr size_t kBytes = size_t{64} << 20;
  // The kernel's counters lag by some pages per thread.
  constexpr int64_t kSlack = int64_t{2} << 20;
  const ResidentMemory before = ReadResidentMemory();
  ASSERT_GT(before.now, 0);
  // Not from an allocator: a sanitizer's keeps what was freed.
  void* block = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(block, MAP_FAILED);
  std::memset(block, 1, kBytes);
  const ResidentMemory held = ReadResidentMemory();
  EXPECT_GE(held.now, before.now + static_cast<int64_t>(kBytes) - kSlack);
  munmap(block, kBytes);
  const ResidentMemory after = ReadResidentMemory();
  EXPECT_LT(after.now, held.now - static_cast<int64_t>(kBytes) / 2);
  EXPECT_GE(after.peak, held.now - kSlack);
}

}  // namespace
}  // namespace cadre
