// --device, --dtype, --weights, --threads and --log-level, which mean the same in every verb.
#pragma once

#include <memory>
#include <string>

#include "core/dtype.h"
#include "core/quantized.h"
#include "core/status.h"
#include "core/tensor.h"

namespace CLI {
class App;
}
namespace spdlog {
class logger;
}

namespace cadre::cli {

struct ComputeFlags {
  std::string device = "cpu";
  std::string dtype = "bf16";
  std::string weights = "stored";
  int threads = 0;  // 0: the cores that this process may run on
  std::string log_level = "info";
};

void AddComputeFlags(CLI::App& command, ComputeFlags* flags);

struct Compute {
  Device device;
  DType dtype = DType::kBF16;
  WeightFormat weights = WeightFormat::kStored;
  int threads = 1;
  std::shared_ptr<spdlog::logger> log;
};
// kInvalidArgument names the flag; kUnavailable where there is no such device.
absl::StatusOr<Compute> ResolveCompute(const ComputeFlags& flags, const std::string& verb);

// `threads`, or for 0 OMP_NUM_THREADS, or the cores that this process may run on.
int ResolveThreads(int threads);

}  // namespace cadre::cli
