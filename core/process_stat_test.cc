#include "core/process_stat.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace cadre {
namespace {

TEST(ProcessStat, ThisProcessRunsAndStartedOnce) {
  const auto first = ReadProcessStat(getpid()), second = ReadProcessStat(getpid());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->state, 'R');
  EXPECT_GT(first->start_time, 0);
  EXPECT_EQ(first->start_time, second->start_time);
}

TEST(ProcessStat, StoppedDeadAndGoneAreToldApart) {
  const pid_t child = fork();
  if (child == 0) {
    raise(SIGSTOP);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  EXPECT_EQ(ReadProcessStat(child)->state, 'T');
  kill(child, SIGCONT);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  EXPECT_EQ(ReadProcessStat(child)->state, 'Z');
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(ReadProcessStat(child).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace cadre
