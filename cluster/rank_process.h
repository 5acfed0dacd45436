// One rank as a process: started with posix_spawn, its output in pipes, or in pseudo-terminals
// where the launcher's own is a terminal and the rank should see one.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "core/status.h"

namespace cadre {

struct RankCommand {
  std::string program;
  std::vector<std::string> arguments;    // the program's name first
  std::vector<std::string> environment;  // NAME=value
  std::vector<int> cores;                // empty: those of the caller
  bool output_terminal = false;
  bool error_terminal = false;
};

// How a process ended.
struct RankExit {
  bool killed = false;
  int code = 0;  // its exit code, or the signal that killed it
};

class RankProcess {
 public:
  // In a process group of its own, with signals as at a login.
  static absl::StatusOr<RankProcess> Start(const RankCommand& command);
  RankProcess(RankProcess&& other) noexcept;
  RankProcess& operator=(RankProcess&& other) noexcept;
  // Kills what still runs.
  ~RankProcess();

  pid_t pid() const { return pid_; }
  // Readable when the process has ended; -1 once it is reaped.
  int ended() const { return ended_; }
  // Non-blocking ends of its output; -1 once they are closed.
  int output() const { return output_; }
  int errors() const { return errors_; }
  void CloseOutput();
  void CloseErrors();

  // To it and what it started.
  void Signal(int signal) const;
  // Waits for a process that has ended, or will at once.
  RankExit Reap();

 private:
  RankProcess() = default;
  pid_t pid_ = -1;
  int ended_ = -1;
  int output_ = -1;
  int errors_ = -1;
};

// `base` with `changes` (NAME=value) instead of what it has under these names.
std::vector<std::string> WithVariables(const std::vector<std::string>& base,
                                       const std::vector<std::string>& changes);

}  // namespace cadre
