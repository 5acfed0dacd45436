#include "core/wait_notice.h"

#include <gtest/gtest.h>

#include <future>

namespace cadre {
namespace {

TEST(WaitNotice, SpeaksWhileTheWaitLasts) {
  std::promise<void> said;
  const WaitNotice notice(std::chrono::milliseconds(1), [&] { said.set_value(); });
  said.get_future().wait();
}

TEST(WaitNotice, SaysNothingOnceItIsOver) {
  bool said = false;
  {
    const WaitNotice notice(std::chrono::hours(1), [&] { said = true; });
  }
  EXPECT_FALSE(said);
}

}  // namespace
}  // namespace cadre
