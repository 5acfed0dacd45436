#include "core/process_stat.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <string_view>

namespace cadre {

absl::StatusOr<ProcessStat> ReadProcessStat(int64_t pid) {
  const std::string path = fmt::format("/proc/{}/stat", pid);
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return NotFound("process {}: there is none", pid);
  char buffer[1024];
  const ssize_t size = read(file, buffer, sizeof buffer - 1);
  close(file);
  if (size <= 0) return NotFound("process {}: there is none", pid);
  buffer[size] = '\0';
  // The name stands in parentheses and may hold any byte, so the fields are counted from its end.
  const size_t name_end = std::string_view(buffer, static_cast<size_t>(size)).rfind(')');
  ProcessStat stat;
  long long start = 0;
  if (name_end == std::string_view::npos ||
      std::sscanf(
          buffer + name_end + 1,
          " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %lld",
          &stat.state, &start) != 2) {
    return DataLoss("{}: not as expected", path);
  }
  stat.start_time = start;
  return stat;
}

// glibc 2.36 declares pidfd_open for C alone.
int OpenProcess(int64_t pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

}  // namespace cadre
