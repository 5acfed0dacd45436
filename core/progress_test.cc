#include "core/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "core/log.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;

// What a run of steps 1..20, half a second each, prints.
std::string Printed(ProgressOptions options) {
  char* text = nullptr;
  size_t size = 0;
  options.file = open_memstream(&text, &size);
  options.total_steps = 20;
  Progress progress(options);
  for (int step = 1; step <= 20; ++step) {
    progress.Update({.step = step, .loss = 10.0 / step, .tokens_per_second = 12345, .mfu = 0.5},
                    100 + 0.5 * step);
  }
  progress.Finish();
  std::fclose(options.file);
  std::string printed(text, size);
  std::free(text);
  return printed;
}

TEST(Progress, PlainLinesComeEverySoManySteps) {
  EXPECT_EQ(Printed({.line_steps = 8}),
            "step 1/20 loss 10.0000 12.3k tok/s mfu 50.0%\n"
            "step 8/20 loss 1.2500 12.3k tok/s mfu 50.0% eta 6s\n"
            "step 16/20 loss 0.6250 12.3k tok/s mfu 50.0% eta 2s\n"
            "step 20/20 loss 0.5000 12.3k tok/s mfu 50.0% done\n");
}

TEST(Progress, PlainLinesAreLimitedInTime) {
  const std::string text = Printed({.line_steps = 1, .line_seconds = 4});
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4);  // steps 1, 9, 17, 20
}

TEST(Progress, ATerminalHasOneLine) {
  const std::string text = Printed({.terminal = true, .columns = 90});
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 20);
  EXPECT_THAT(text, HasSubstr("[###############...............] step 10/20"));
  const std::string narrow = Printed({.terminal = true, .columns = 20});
  EXPECT_THAT(narrow, HasSubstr("\rstep 1/20 loss 10.0\x1b[K"));
}

TEST(Progress, AFileThatTakesNothingHarmsNothing) {
  for (const bool terminal : {false, true}) {
    FILE* full = std::fopen("/dev/full", "w");
    ASSERT_NE(full, nullptr);
    std::setvbuf(full, nullptr, _IONBF, 0);
    Progress progress({.file = full, .terminal = terminal, .total_steps = 2});
    progress.Update({.step = 1}, 1);
    progress.Update({.step = 2}, 2);
    progress.Finish();
    std::fclose(full);
  }
}

TEST(Progress, Units) {
  EXPECT_EQ(FormatDuration(59.4), "59s");
  EXPECT_EQ(FormatDuration(59.6), "1m 00s");
  EXPECT_EQ(FormatDuration(11225), "3h 07m");
  EXPECT_EQ(FormatDuration(187200), "2d 04h");
  EXPECT_EQ(FormatDuration(1e300), "?");
  EXPECT_EQ(FormatCount(950), "950");
  EXPECT_EQ(FormatCount(4.56e6), "4.56M");
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1000), "0.977 KiB");
  EXPECT_EQ(FormatBytes(12 << 20), "12 MiB");
  EXPECT_EQ(FormatBytes((int64_t{1} << 30) - 1), "1 GiB");
  EXPECT_EQ(FormatBytes(int64_t{5} << 38), "1.25 TiB");
}

TEST(Log, LevelsAreNamed) {
  EXPECT_TRUE(MakeLogger("x", "warn").ok());
  EXPECT_THAT(Message(MakeLogger("x", "loud").status()), HasSubstr("allowed: trace, debug, info"));
}

}  // namespace
}  // namespace cadre
