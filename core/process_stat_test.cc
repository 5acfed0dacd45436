#include "core/process_stat.h"

#include <gtest/gtest.h>
#include <poll.h>
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
  const int ended = OpenProcess(child);
  ASSERT_GE(ended, 0);
  pollfd file = {.fd = ended, .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&file, 1, 0), 0);
  kill(child, SIGCONT);
  EXPECT_EQ(poll(&file, 1, -1), 1);
  close(ended);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  EXPECT_EQ(ReadProcessStat(child)->state, 'Z');
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(ReadProcessStat(child).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace cadre
