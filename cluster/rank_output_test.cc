#include "cluster/rank_output.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "cluster/core_shares.h"

namespace cadre {
namespace {

constexpr char kWarning[] = "2026-01-31 12:00:00.000 W train: slow";
constexpr char kError[] = "2026-01-31 12:00:00.000 E train: broken";
constexpr char kInfo[] = "2026-01-31 12:00:00.000 I train: step 1";

// Both streams of the terminal in one pipe, in order.
class RankOutputTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(pipe2(files_, O_NONBLOCK), 0); }
  void TearDown() override {
    close(files_[0]);
    close(files_[1]);
  }
  std::string Shown() const {
    char buffer[65536];
    const ssize_t n = read(files_[0], buffer, sizeof buffer);
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : "";
  }
  RankTerminal Terminal(bool redraws = false) const {
    return RankTerminal(files_[1], files_[1], redraws);
  }
  int files_[2];
};

TEST(Severity, IsRead) {
  EXPECT_EQ(SeverityOf(kInfo), Severity::kPlain);
  EXPECT_EQ(SeverityOf(kWarning), Severity::kWarning);
  EXPECT_EQ(SeverityOf(kError), Severity::kError);
  EXPECT_EQ(SeverityOf("2026-01-31 12:00:00.000 \x1b[33mW\x1b[m train: slow"), Severity::kWarning);
  EXPECT_EQ(SeverityOf("error: no"), Severity::kError);
  EXPECT_EQ(SeverityOf("a.cc:3: check failed: x > 0"), Severity::kError);
  EXPECT_EQ(SeverityOf("an error: no"), Severity::kPlain);
  EXPECT_EQ(SeverityOf(""), Severity::kPlain);
}

TEST_F(RankOutputTest, RankZeroIsShownAsItIs) {
  RankTerminal terminal = Terminal();
  RankOutput output(0, true, -1, &terminal);
  output.Take(true, "\rstep 1");
  output.Take(true, "\rstep 2\n");
  output.Take(false, "{\"a\":");
  EXPECT_EQ(Shown(), "\rstep 1\rstep 2\n{\"a\":");
}

TEST_F(RankOutputTest, OthersShowWarningsAndErrors) {
  RankTerminal terminal = Terminal();
  RankOutput output(3, false, -1, &terminal);
  output.Take(true, std::string(kInfo) + "\n" + kWarning);
  EXPECT_EQ(Shown(), "");
  output.Take(true, "\n");
  EXPECT_EQ(Shown(), std::string("[rank 3] ") + kWarning + "\n");
  output.Take(true, "error: no\n");
  EXPECT_EQ(Shown(), "");
  terminal.ReleaseOld(RankTerminal::Clock::now() + RankTerminal::kHold);
  EXPECT_EQ(Shown(), "[rank 3] error: no\n");
}

TEST_F(RankOutputTest, TheCulpritsLastWordsComeFirst) {
  RankTerminal terminal = Terminal();
  RankOutput zero(0, true, -1, &terminal), three(3, false, -1, &terminal);
  zero.Take(true, "error: rank 3 is lost\n");
  three.Take(true, "error: no\n");
  EXPECT_EQ(Shown(), "");
  EXPECT_TRUE(terminal.NextRelease());
  EXPECT_EQ(three.LastError(true), "error: no");
  terminal.Blame(3, three.LastError(true), RankTerminal::Clock::now());
  EXPECT_EQ(Shown(), "[rank 3] error: no\nerror: rank 3 is lost\n");
}

TEST_F(RankOutputTest, WhatSeveralRanksSayIsShownOnce) {
  RankTerminal terminal = Terminal();
  const RankTerminal::Clock::time_point now;
  // Before it is known who is to blame, after, and once all have ended.
  terminal.Hold(2, "error: no", now);
  terminal.Hold(0, "error: \x1b[31mno", now);
  terminal.ReleaseOld(now + RankTerminal::kHold);
  EXPECT_EQ(Shown(), "[rank 2] error: no\n");
  terminal.Hold(1, "error: no", now);
  terminal.Hold(1, "error: another", now);
  terminal.Blame(1, "error: no", now);
  EXPECT_EQ(Shown(), "[rank 1] error: another\n");
  for (const int rank : {2, 3}) terminal.Hold(rank, "error: no", now);
  terminal.Release();
  EXPECT_EQ(Shown(), "");
  // Another start.
  terminal.Hold(1, "error: no", now);
  terminal.Blame(-1, "", now);
  EXPECT_EQ(Shown(), "[rank 1] error: no\n");
}

TEST_F(RankOutputTest, WhatOneRankSaysAgainIsShownAgain) {
  RankTerminal terminal = Terminal();
  const RankTerminal::Clock::time_point now;
  for (int i = 0; i < 2; ++i) terminal.Hold(1, "error: no", now);
  terminal.Hold(2, "error: no", now + RankTerminal::kRepeat * 2);
  terminal.ReleaseOld(now + RankTerminal::kRepeat * 3);
  EXPECT_EQ(Shown(), "[rank 1] error: no\n[rank 1] error: no\n[rank 2] error: no\n");
}

TEST_F(RankOutputTest, OtherLinesDoNotMixWithProgress) {
  for (const bool redraws : {false, true}) {
    RankTerminal terminal = Terminal(redraws);
    RankOutput zero(0, true, -1, &terminal), one(1, false, -1, &terminal);
    zero.Take(true, "\rstep 1");
    one.Take(true, std::string(kWarning) + "\n");
    EXPECT_EQ(Shown(), std::string("\rstep 1") + (redraws ? "\r\x1b[K" : "\n") + "[rank 1] " +
                           kWarning + "\n");
  }
}

TEST_F(RankOutputTest, KeepsTheLastErrorLine) {
  RankTerminal terminal = Terminal();
  RankOutput output(1, false, -1, &terminal);
  output.Take(false, "error: on standard output\n");
  EXPECT_EQ(output.LastError(true), "");
  output.Take(true, "first\nlast");
  EXPECT_EQ(output.LastError(true), "first");
  output.Finish();
  EXPECT_EQ(output.LastError(true), "last");
  output.Take(true, "\rstep 1\rstep 2\r\n");
  EXPECT_EQ(output.LastError(true), "step 2");
  EXPECT_EQ(output.LastError(false), "");
  output.Take(true, std::string(kWarning) + "\nafter\n");
  EXPECT_EQ(output.LastError(true), kWarning);
  output.Take(true, std::string(kError) + "\nafter\n");
  EXPECT_EQ(output.LastError(true), kError);
}

TEST_F(RankOutputTest, LongLinesAreBounded) {
  RankTerminal terminal = Terminal();
  RankOutput output(1, false, -1, &terminal);
  for (int i = 0; i < 100; ++i) output.Take(true, std::string(1000, 'x'));
  EXPECT_LE(output.LastError(true).size(), RankOutput::kMaxLineBytes + 1000);
}

TEST_F(RankOutputTest, TheLogHasEverything) {
  const std::string path = testing::TempDir() + "/rank_output_test." + std::to_string(getpid());
  const int log = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(log, 0);
  const int copy = dup(log);
  {
    RankTerminal terminal = Terminal();
    RankOutput output(1, false, log, &terminal);
    output.Take(false, "out\n");
    output.Take(true, "err");
  }
  char buffer[64];
  EXPECT_EQ(std::string(buffer, static_cast<size_t>(pread(copy, buffer, sizeof buffer, 0))),
            "out\nerr");
  close(copy);
  unlink(path.c_str());
}

TEST(CoreShares, AreEven) {
  const std::vector<int> cores = {0, 2, 4, 6, 8};
  EXPECT_EQ(ShareCores(cores, 0, 2).cores, (std::vector<int>{0, 2}));
  EXPECT_EQ(ShareCores(cores, 1, 2).cores, (std::vector<int>{4, 6, 8}));
  EXPECT_EQ(ShareCores(cores, 1, 2).threads, 3);
  EXPECT_EQ(ShareCores(cores, 4, 5).cores, (std::vector<int>{8}));
  EXPECT_TRUE(ShareCores(cores, 5, 6).cores.empty());
  EXPECT_EQ(ShareCores(cores, 5, 6).threads, 1);
  EXPECT_FALSE(AllowedCores().empty());
}

}  // namespace
}  // namespace cadre
