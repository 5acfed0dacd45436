// What nccl_device_cuda.cc holds, in a build without CUDA or without NCCL's header.
#include "parallel/nccl_device.h"

namespace cadre {

std::string WhyNoNccl() { return "this build has no NCCL"; }

absl::StatusOr<std::string> NcclVersion() { return absl::FailedPreconditionError(WhyNoNccl()); }

absl::StatusOr<std::shared_ptr<NcclDevice>> OpenNcclDevice(const NcclDeviceOptions&) {
  return absl::FailedPreconditionError(WhyNoNccl());
}

}  // namespace cadre
