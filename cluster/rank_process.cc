#include "cluster/rank_process.h"

#include <fcntl.h>
#include <pty.h>
#include <sched.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <set>
#include <string_view>
#include <utility>

#include "core/file.h"
#include "core/process_stat.h"

namespace cadre {
namespace {

void CloseFile(int* file) {
  if (*file >= 0) close(*file);
  *file = -1;
}

// The launcher's end and the rank's end.
struct Channel {
  int ours = -1, theirs = -1;
  ~Channel() {
    CloseFile(&ours);
    CloseFile(&theirs);
  }
};

absl::Status OpenChannel(bool terminal, Channel* channel) {
  if (terminal) {
    winsize size = {};
    ioctl(STDERR_FILENO, TIOCGWINSZ, &size);
    if (openpty(&channel->ours, &channel->theirs, nullptr, nullptr, &size) != 0) {
      return ErrnoError("rank", "cannot open a pseudo-terminal", errno);
    }
    // Bytes pass as they are; the terminal they end up on does the rest.
    termios mode;
    tcgetattr(channel->theirs, &mode);
    cfmakeraw(&mode);
    tcsetattr(channel->theirs, TCSANOW, &mode);
    fcntl(channel->theirs, F_SETFD, FD_CLOEXEC);
  } else {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoError("rank", "cannot open a pipe", errno);
    channel->ours = ends[0];
    channel->theirs = ends[1];
  }
  fcntl(channel->ours, F_SETFD, FD_CLOEXEC);
  fcntl(channel->ours, F_SETFL, fcntl(channel->ours, F_GETFL) | O_NONBLOCK);
  return absl::OkStatus();
}

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// A spawned process inherits its cores from the thread that spawns it.
class OnCores {
 public:
  explicit OnCores(const std::vector<int>& cores) : changed_(!cores.empty()) {
    if (!changed_) return;
    sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int core : cores) CPU_SET(static_cast<size_t>(core), &set);
    sched_setaffinity(0, sizeof set, &set);
  }
  ~OnCores() {
    if (changed_) sched_setaffinity(0, sizeof before_, &before_);
  }

 private:
  bool changed_;
  cpu_set_t before_;
};

// 0, or what went wrong.
int Spawn(const RankCommand& command, int output, int errors, pid_t* pid) {
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&files, errors, STDERR_FILENO);
  posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1);
  posix_spawnattr_t how;
  posix_spawnattr_init(&how);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&how, &none);
  posix_spawnattr_setsigdefault(&how, &all);
  posix_spawnattr_setpgroup(&how, 0);
  posix_spawnattr_setflags(&how,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  const OnCores cores(command.cores);
  const int error =
      posix_spawn(pid, command.program.c_str(), &files, &how, Pointers(command.arguments).data(),
                  Pointers(command.environment).data());
  posix_spawnattr_destroy(&how);
  posix_spawn_file_actions_destroy(&files);
  return error;
}

}  // namespace

absl::StatusOr<RankProcess> RankProcess::Start(const RankCommand& command) {
  Channel output, errors;
  CADRE_RETURN_IF_ERROR(OpenChannel(command.output_terminal, &output));
  CADRE_RETURN_IF_ERROR(OpenChannel(command.error_terminal, &errors));
  RankProcess process;
  if (const int error = Spawn(command, output.theirs, errors.theirs, &process.pid_); error != 0) {
    process.pid_ = -1;
    return ErrnoError(command.program, "cannot start", error);
  }
  process.ended_ = OpenProcess(process.pid_);
  if (process.ended_ < 0) return ErrnoError(command.program, "cannot watch the process", errno);
  process.output_ = std::exchange(output.ours, -1);
  process.errors_ = std::exchange(errors.ours, -1);
  return process;
}

RankProcess::RankProcess(RankProcess&& other) noexcept { *this = std::move(other); }

RankProcess& RankProcess::operator=(RankProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(ended_, other.ended_);
  std::swap(output_, other.output_);
  std::swap(errors_, other.errors_);
  return *this;
}

RankProcess::~RankProcess() {
  if (pid_ > 0) {
    Signal(SIGKILL);
    Reap();
  }
  CloseOutput();
  CloseErrors();
}

void RankProcess::CloseOutput() { CloseFile(&output_); }
void RankProcess::CloseErrors() { CloseFile(&errors_); }

void RankProcess::Signal(int signal) const {
  if (pid_ > 0) kill(-pid_, signal);
}

RankExit RankProcess::Reap() {
  siginfo_t info = {};
  while (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
  }
  // While its number is still its own: what it started goes with it.
  kill(-pid_, SIGKILL);
  while (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED) != 0 && errno == EINTR) {
  }
  pid_ = -1;
  CloseFile(&ended_);
  return {.killed = info.si_code != CLD_EXITED, .code = info.si_status};
}

std::vector<std::string> WithVariables(const std::vector<std::string>& base,
                                       const std::vector<std::string>& changes) {
  const auto name = [](std::string_view variable) {
    return variable.substr(0, variable.find('='));
  };
  std::set<std::string_view> changed;
  for (const std::string& variable : changes) changed.insert(name(variable));
  std::vector<std::string> all = changes;
  for (const std::string& variable : base) {
    if (!changed.contains(name(variable))) all.push_back(variable);
  }
  return all;
}

}  // namespace cadre
