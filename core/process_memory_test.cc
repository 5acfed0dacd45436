#include "core/process_memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

namespace cadre {
namespace {

TEST(ProcessMemory, SeesWhatIsTouchedAndRemembersIt) {
  constexpr size_t kBytes = size_t{64} << 20;
  // The kernel's counters lag by some pages per thread.
  constexpr int64_t kSlack = int64_t{2} << 20;
  const ResidentMemory before = ReadResidentMemory();
  ASSERT_GT(before.now, 0);
  auto block = std::make_unique_for_overwrite<char[]>(kBytes);
  std::memset(block.get(), 1, kBytes);
  const ResidentMemory held = ReadResidentMemory();
  EXPECT_GE(held.now, before.now + static_cast<int64_t>(kBytes) - kSlack);
  block.reset();
  const ResidentMemory after = ReadResidentMemory();
  EXPECT_LT(after.now, held.now - static_cast<int64_t>(kBytes) / 2);
  EXPECT_GE(after.peak, held.now - kSlack);
}

}  // namespace
}  // namespace cadre
