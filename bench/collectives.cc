// Latency and bandwidth of collectives between processes, by size, group and transport:
//   build/release/bench_collectives [--ranks 4] [--transport shm|ucx] [--no-pin]
//                                   [--operation all_reduce] [--bytes 4096] [--netns a,b]
// Without --ranks and --bytes: a table over both. Pinned, rank r runs on core r modulo the cores.
//
// Ceilings, measured in the same run: a futex hand-over between two processes of one core (every
// rank has to be scheduled at least once per operation), and copying memory on one core.
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <sstream>

#include "bench/fork_ranks.h"
#include "bench/peak.h"
#include "core/host_allocator.h"
#include "parallel/world.h"

namespace cadre::bench {
namespace {

struct Options {
  std::vector<int> ranks = {2, 4, 8};
  std::vector<int64_t> bytes = {4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20};
  std::string operation = "all_reduce";
  TransportKind transport = TransportKind::kAuto;
  bool pin = true;
  std::vector<std::string> namespaces;
};

void HandOver() {
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto& word = *static_cast<std::atomic<uint32_t>*>(memory);
  constexpr uint32_t kRounds = 20000;
  ForkRanks({.ranks = 2, .pin = false}, [&](Bootstrap& bootstrap) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(0, &cores);
    sched_setaffinity(0, sizeof(cores), &cores);
    const auto me = static_cast<uint32_t>(bootstrap.rank());
    (void)bootstrap.AllGather("start", "");
    const double start = Now();
    for (uint32_t turn = me; turn < kRounds; turn += 2) {
      for (uint32_t seen = word; seen != turn; seen = word) {
        syscall(SYS_futex, &word, FUTEX_WAIT, seen, nullptr, nullptr, 0);
      }
      word = turn + 1;
      syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
    }
    if (me == 0)
      std::printf("hand-over of a core between processes: %.1f us\n",
                  1e6 * (Now() - start) / kRounds);
    return 0;
  });
  munmap(memory, 4096);
}

double CopyBandwidth() {
  constexpr size_t kBytes = 16 << 20;
  std::vector<char> from(kBytes, 1), to(kBytes);
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    const double start = Now();
    std::memcpy(to.data(), from.data(), kBytes);
    best = std::max(best, kBytes / (Now() - start));
  }
  return best;
}

WorkPtr Begin(Communicator& group, const std::string& operation, const Tensor& buffer,
              const Tensor& other) {
  const OpLabel label = {"bench"};
  if (operation == "all_reduce") return group.AllReduce(buffer, ReduceOp::kSum, label);
  const int64_t part = buffer.numel() / group.size();
  const Tensor whole = buffer.Narrow(0, part * group.size());
  const Tensor one = other.Narrow(0, part);
  if (operation == "reduce_scatter") {
    return group.ReduceScatter(whole, one, ReduceOp::kSum, label);
  }
  if (operation == "all_gather") return group.AllGather(one, whole, label);
  if (operation == "all_to_all") {
    return group.AllToAll(whole, other.Narrow(0, whole.numel()), label);
  }
  if (operation == "broadcast") return group.Broadcast(buffer, 0, label);
  return group.Barrier(label);
}

struct Figures {
  double p50 = 0, p90 = 0, best = 0;
};

// Times of rank 0; ranks start each operation together since each waits for the last one.
absl::StatusOr<Figures> Measure(Communicator& group, const std::string& operation, int64_t bytes,
                                HostAllocator& memory) {
  const Tensor buffer = Tensor::Zeros(memory, {bytes / 4}, DType::kF32);
  const Tensor other = Tensor::Zeros(memory, {bytes / 4}, DType::kF32);
  const int rounds = static_cast<int>(std::clamp<int64_t>((256 << 20) / bytes, 8, 4000));
  std::vector<double> times;
  for (int i = -rounds / 8 - 1; i < rounds; ++i) {
    const double start = Now();
    CADRE_RETURN_IF_ERROR(Begin(group, operation, buffer, other)->Wait());
    if (i >= 0) times.push_back(Now() - start);
  }
  std::ranges::sort(times);
  return Figures{times[times.size() / 2], times[times.size() * 9 / 10], times.front()};
}

int RunWorld(const Options& options, int ranks) {
  return ForkRanks({.ranks = ranks, .pin = options.pin, .namespaces = options.namespaces},
                   [&](Bootstrap& bootstrap) {
                     HostAllocator memory;
                     auto world = World::Create(bootstrap, {.transport = options.transport});
                     if (!world.ok()) {
                       std::fprintf(stderr, "error: %s\n", Message(world.status()).c_str());
                       return 1;
                     }
                     std::vector<int> all(static_cast<size_t>(ranks));
                     std::iota(all.begin(), all.end(), 0);
                     auto group = (*world)->NewGroup("world", all);
                     for (const int64_t bytes : options.bytes) {
                       auto figures = Measure(*group, options.operation, bytes, memory);
                       if (!figures.ok()) {
                         std::fprintf(stderr, "error: %s\n", Message(figures.status()).c_str());
                         return 1;
                       }
                       if (bootstrap.rank() != 0) continue;
                       std::printf("%-14s %5d %10lld %10.1f %10.1f %10.1f %9.2f\n",
                                   options.operation.c_str(), ranks, static_cast<long long>(bytes),
                                   1e6 * figures->best, 1e6 * figures->p50, 1e6 * figures->p90,
                                   static_cast<double>(bytes) / figures->p50 / 1e9);
                       std::fflush(stdout);
                     }
                     return 0;
                   });
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--no-pin") {
      options.pin = false;
      continue;
    }
    ++i;
    if (flag == "--ranks")
      options.ranks = {std::atoi(value.c_str())};
    else if (flag == "--bytes")
      options.bytes = {std::atoll(value.c_str())};
    else if (flag == "--operation")
      options.operation = value;
    else if (flag == "--netns")
      options.namespaces = Split(value);
    else if (flag == "--transport") {
      options.transport = value == "ucx" ? TransportKind::kUcx : TransportKind::kShm;
    } else {
      std::fprintf(stderr, "error: %s; the head of bench/collectives.cc lists the options\n",
                   flag.c_str());
      return 2;
    }
  }
  HandOver();
  std::printf("copying memory on one core: %.1f GB/s\n", CopyBandwidth() / 1e9);
  std::printf("%-14s %5s %10s %10s %10s %10s %9s\n", "operation", "ranks", "bytes", "best us",
              "p50 us", "p90 us", "GB/s");
  for (const int ranks : options.ranks) {
    if (const int code = RunWorld(options, ranks); code != 0) return code;
  }
  return 0;
}

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) { return cadre::bench::Main(argc, argv); }
