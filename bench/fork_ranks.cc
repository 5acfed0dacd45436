#include "bench/fork_ranks.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>

namespace cadre::bench {
namespace {

constexpr int kMaxRanks = 64;
constexpr size_t kMaxValue = 32 << 10;

// A round is over when all have written; nobody starts the next before all have read.
struct Board {
  std::atomic<uint32_t> arrivals;
  uint32_t sizes[kMaxRanks];
  char values[kMaxRanks][kMaxValue];
};

class BoardBootstrap : public Bootstrap {
 public:
  BoardBootstrap(Board& board, int rank, int size) : board_(board), rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  absl::StatusOr<std::vector<std::string>> AllGather(std::string_view, std::string mine) override {
    CADRE_CHECK(mine.size() <= kMaxValue);
    std::memcpy(board_.values[rank_], mine.data(), mine.size());
    board_.sizes[rank_] = static_cast<uint32_t>(mine.size());
    Meet();
    std::vector<std::string> all;
    for (int r = 0; r < size_; ++r) all.emplace_back(board_.values[r], board_.sizes[r]);
    Meet();
    return all;
  }

 private:
  void Meet() {
    meetings_ += static_cast<uint32_t>(size_);
    auto* word = reinterpret_cast<uint32_t*>(&board_.arrivals);
    if (board_.arrivals.fetch_add(1) + 1 == meetings_) {
      syscall(SYS_futex, word, FUTEX_WAKE, kMaxRanks, nullptr, nullptr, 0);
    }
    for (uint32_t seen = board_.arrivals; seen < meetings_; seen = board_.arrivals) {
      syscall(SYS_futex, word, FUTEX_WAIT, seen, nullptr, nullptr, 0);
    }
  }

  Board& board_;
  const int rank_, size_;
  uint32_t meetings_ = 0;
};

// With a /sys of its own, where UCX looks for network devices.
bool EnterNamespace(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool entered = descriptor >= 0 && setns(descriptor, CLONE_NEWNET) == 0;
  if (descriptor >= 0) close(descriptor);
  return entered && unshare(CLONE_NEWNS) == 0 &&
         mount("", "/", "none", MS_SLAVE | MS_REC, nullptr) == 0 &&
         umount2("/sys", MNT_DETACH) == 0 && mount("sysfs", "/sys", "sysfs", 0, nullptr) == 0;
}

int RunRank(const ForkOptions& options, int rank, Board& board,
            const std::function<int(Bootstrap&)>& body) {
  if (options.pin) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(static_cast<size_t>(rank) % static_cast<size_t>(sysconf(_SC_NPROCESSORS_ONLN)), &cores);
    sched_setaffinity(0, sizeof(cores), &cores);
  }
  if (!options.namespaces.empty()) {
    const std::string path =
        "/run/netns/" + options.namespaces[static_cast<size_t>(rank) % options.namespaces.size()];
    if (!EnterNamespace(path)) {
      std::perror(path.c_str());
      return 1;
    }
  }
  BoardBootstrap bootstrap(board, rank, options.ranks);
  return body(bootstrap);
}

}  // namespace

int ForkRanks(const ForkOptions& options, const std::function<int(Bootstrap&)>& body) {
  CADRE_CHECK(options.ranks <= kMaxRanks);
  void* memory =
      mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CADRE_CHECK(memory != MAP_FAILED);
  auto& board = *static_cast<Board*>(memory);
  std::fflush(nullptr);
  std::vector<pid_t> children;
  for (int rank = 0; rank < options.ranks; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      const int code = RunRank(options, rank, board, body);
      std::fflush(nullptr);
      _exit(code);
    }
    children.push_back(child);
  }
  int worst = 0;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0) worst = 1;
  }
  munmap(memory, sizeof(Board));
  return worst;
}

}  // namespace cadre::bench
