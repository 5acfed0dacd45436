#include "cli/compute_flags.h"

#include <sched.h>

#include <CLI/CLI.hpp>

#include "cli/environment.h"
#include "core/log.h"
#include "model/model.h"

namespace cadre::cli {
namespace {

constexpr int kMaxThreads = 4096;

}  // namespace

void AddComputeFlags(CLI::App& command, ComputeFlags* flags) {
  command.add_option("--device", flags->device, "cpu or cuda")->capture_default_str();
  command
      .add_option("--dtype", flags->dtype, "compute type: bf16, f32, or f64 (reference ops, slow)")
      ->capture_default_str();
  command
      .add_option("--weights", flags->weights,
                  "stored: as the model has them; int8 or int4: projections quantized on loading")
      ->capture_default_str();
  command.add_option("--threads", flags->threads, "CPU threads; 0: all cores that it may run on")
      ->capture_default_str();
  command.add_option("--log-level", flags->log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
}

int ResolveThreads(int threads) {
  if (threads > 0) return threads;
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return 1;
  // What the user, or a launcher whose ranks outnumber the cores, asks for.
  int wanted = 0;
  if (const auto omp = Variable("OMP_NUM_THREADS");
      omp && CLI::detail::lexical_cast(*omp, wanted)) {
    if (wanted > 0 && wanted <= kMaxThreads) return wanted;
  }
  return CPU_COUNT(&cores);
}

absl::StatusOr<Compute> ResolveCompute(const ComputeFlags& flags, const std::string& verb) {
  Compute compute;
  if (flags.device == "cuda") {
    return Unimplemented("--device cuda: {} runs on the CPU so far", verb);
  }
  if (flags.device != "cpu")
    return InvalidArgument("--device {}: allowed are cpu and cuda", flags.device);
  const absl::StatusOr<DType> dtype = ParseDType(flags.dtype);
  if (!dtype.ok() || (*dtype != DType::kBF16 && *dtype != DType::kF32 && *dtype != DType::kF64)) {
    return InvalidArgument("--dtype {}: allowed are bf16, f32 and f64", flags.dtype);
  }
  compute.dtype = *dtype;
  const absl::StatusOr<WeightFormat> weights = ParseWeightFormat(flags.weights);
  if (!weights.ok()) {
    return InvalidArgument("--weights {}: allowed are stored, int8 and int4", flags.weights);
  }
  compute.weights = *weights;
  if (flags.threads < 0 || flags.threads > kMaxThreads) {
    return InvalidArgument("--threads {}: allowed are 0 to {}", flags.threads, kMaxThreads);
  }
  compute.threads = ResolveThreads(flags.threads);
  CADRE_ASSIGN_OR_RETURN(compute.log, MakeLogger(verb, flags.log_level));
  return compute;
}

}  // namespace cadre::cli
