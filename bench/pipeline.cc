// Measured against predicted time of a step under every pipeline schedule, with stages that sleep
// instead of computing, so that ranks may outnumber cores:
//   build/release/bench_pipeline [--ranks 4] [--microbatches 8] [--milliseconds 10]
// A rank's share of the model sleeps that long in a forward, and as long in each of the two halves
// of a backward. Fails where schedules whose predictions lie over 5 % apart measure in another
// order.
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <sstream>

#include "bench/fork_ranks.h"
#include "bench/peak.h"
#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "parallel/groups.h"
#include "parallel/pipeline_executor.h"
#include "parallel/schedule_simulate.h"
#include "parallel/world.h"
#include "proto/parallel_config.pb.h"

namespace cadre::bench {
namespace {

struct Options {
  int ranks = 4;
  int microbatches = 8;
  double milliseconds = 10;
};

const Shape kActivation{256, 256};

void Sleep(double seconds) {
  timespec left{.tv_sec = 0, .tv_nsec = static_cast<long>(1e9 * seconds)};
  while (nanosleep(&left, &left) != 0) {
  }
}

// Hands on what it gets, late.
Var SleepyStage(Context& ctx, const StageInput& in, bool last, double seconds) {
  Sleep(seconds);
  Var y{ctx.Zeros(kActivation, DType::kF32), ctx.tape->NewSlot()};
  ctx.tape->Record({.name = "sleepy stage",
                    .inputs = {in.activation.slot},
                    .outputs = {y.slot},
                    .input_grad =
                        [x = in.activation.slot, seconds](GradContext& g) {
                          Sleep(seconds);
                          g.AddGrad(x, g.ctx().Zeros(kActivation, DType::kF32));
                        },
                    .weight_grad = [seconds](GradContext&) { Sleep(seconds); }});
  if (last) ctx.tape->Seed(y.slot, ctx.Zeros(kActivation, DType::kF32));
  return y;
}

// The median time of a step, written to `out` by the first rank.
int RunRank(Bootstrap& bootstrap, const ScheduleSpec& spec, double seconds, double* out) {
  constexpr int kSteps = 5;
  HostAllocator memory;
  auto world = World::Create(bootstrap, {});
  if (!world.ok()) {
    std::fprintf(stderr, "error: %s\n", Message(world.status()).c_str());
    return 1;
  }
  std::vector<int> all(static_cast<size_t>(spec.ranks));
  std::iota(all.begin(), all.end(), 0);
  const auto group = (*world)->NewGroup("pp", all);
  ParallelGroups groups{.pp = group.get()};
  ParameterStore store;
  Context ctx{.allocator = &memory, .threads = 1, .parameters = &store, .groups = &groups};
  PipelineExecutor executor(
      {.group = group.get(),
       .shapes = std::vector<Shape>(static_cast<size_t>(spec.stages()), kActivation),
       .dtype = DType::kF32,
       .accumulate = &ops::Accumulate});
  const auto schedule = MakeSchedule(spec);
  std::vector<double> times;
  for (int step = 0; step < kSteps; ++step) {
    if (!group->Barrier({"start"})->Wait().ok()) return 1;
    const double start = Now();
    const absl::Status status = executor.Run(ctx, *schedule, [&](const StageInput& in) {
      return SleepyStage(ctx, in, in.stage + 1 == spec.stages(), seconds / spec.stages_per_rank);
    });
    if (!status.ok() || !group->Barrier({"end"})->Wait().ok()) return 1;
    times.push_back(Now() - start);
  }
  std::nth_element(times.begin(), times.begin() + kSteps / 2, times.end());
  *out = times[kSteps / 2];
  return 0;
}

struct Result {
  std::string name;
  double predicted, measured;
};

bool SameOrder(const std::vector<Result>& results) {
  bool same = true;
  for (const Result& a : results) {
    for (const Result& b : results) {
      if (a.predicted * 1.05 >= b.predicted || a.measured < b.measured) continue;
      std::printf("%s was predicted to be faster than %s and was not\n", a.name.c_str(),
                  b.name.c_str());
      same = false;
    }
  }
  return same;
}

int Run(const Options& options) {
  std::printf("%-18s %12s %12s %10s %8s\n", "schedule", "predicted ms", "measured ms", "ratio",
              "bubble");
  std::vector<Result> results;
  auto* measured = static_cast<double*>(
      mmap(nullptr, sizeof(double), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  for (const config::PipelineSchedule kind : AllSchedules()) {
    const ScheduleSpec spec = {.kind = kind,
                               .ranks = options.ranks,
                               .stages_per_rank = LeastStagesPerRank(kind),
                               .microbatches = options.microbatches};
    const auto schedule = MakeSchedule(spec);
    if (!schedule.ok()) {
      std::printf("%s\n", Message(schedule.status()).c_str());
      continue;
    }
    const Simulation simulation = *SimulateSchedule(*schedule, {});
    const double seconds = options.milliseconds / 1e3;
    const int failed = ForkRanks({.ranks = options.ranks, .pin = false}, [&](Bootstrap& bootstrap) {
      double own = 0;
      const int rc = RunRank(bootstrap, spec, seconds, &own);
      if (bootstrap.rank() == 0) *measured = own;
      return rc;
    });
    if (failed != 0) return failed;
    results.push_back({std::string(Name(kind)), simulation.makespan * seconds, *measured});
    const Result& r = results.back();
    std::printf("%-18s %12.1f %12.1f %10.3f %7.1f%%\n", r.name.c_str(), 1e3 * r.predicted,
                1e3 * r.measured, r.measured / r.predicted, 100 * simulation.bubble_share());
  }
  return SameOrder(results) ? 0 : 1;
}

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) {
  cadre::bench::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--ranks") options.ranks = std::stoi(argv[i + 1]);
    if (flag == "--microbatches") options.microbatches = std::stoi(argv[i + 1]);
    if (flag == "--milliseconds") options.milliseconds = std::stod(argv[i + 1]);
  }
  return cadre::bench::Run(options);
}
