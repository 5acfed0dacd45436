// NcclDevice: one GPU of this rank, its compute stream and what NCCL does on it. The implementation
// is nccl_device_cuda.cc where NCCL's header was found, no_nccl.cc elsewhere; tests have one in
// host memory (nccl_fake.h).
//
//   CADRE_ASSIGN_OR_RETURN(options.nccl, OpenNcclDevice({.index = 0, .compute_stream = stream}));
//   CADRE_ASSIGN_OR_RETURN(auto world, World::Create(bootstrap, options));
//   CADRE_ASSIGN_OR_RETURN(auto tp, world->NewDeviceGroup("tp", ranks));
//
// Nothing here blocks but where it says so. All of NcclDevice may be called from any thread, a link
// by one thread at a time.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "core/status.h"
#include "core/tensor.h"
#include "parallel/nccl_calls.h"

namespace cadre {

// What ranks find one another with: ncclUniqueId.
using NcclId = std::array<std::byte, 128>;

// A moment of a stream. Marked again it is another moment; what waits already waits for the first.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
};

// This rank's end of an NCCL communicator, with a stream of its own.
class NcclLink {
 public:
  // Aborts it, unless it has ended or was aborted.
  virtual ~NcclLink() = default;

  // Whether NCCL is through with the last call; false: ask again. An error is final, and may be one
  // of an operation that was launched long ago.
  virtual absl::StatusOr<bool> Settled() = 0;
  // Once settled: puts the calls on the link's stream, behind `after`.
  virtual absl::Status Launch(const NcclCalls& calls, const DeviceEvent& after) = 0;
  // Once that has settled: marks the end of all that was launched.
  virtual absl::Status Mark(DeviceEvent& event) = 0;
  // Calls `notify` on a thread of the device once the event is reached, which this link has marked.
  virtual absl::Status NotifyAt(const DeviceEvent& event, std::function<void()> notify) = 0;
  // Once settled and with nothing under way: ends the link together with the peers, who call it
  // too. It has ended when it has settled; only Abort and the destructor may follow. False: ask.
  virtual absl::StatusOr<bool> End() = 0;
  // Stops what is under way, of this rank alone; its buffers are free when this returns. Blocks for
  // as long as the GPU takes, at most some seconds. Only the destructor may follow.
  virtual void Abort() = 0;
};

class NcclDevice {
 public:
  virtual ~NcclDevice() = default;

  virtual Device device() const = 0;

  // For a new link; one rank makes it, all need it.
  virtual absl::StatusOr<NcclId> MakeId() = 0;
  // Returns at once; the link has opened when it has settled.
  virtual absl::StatusOr<std::unique_ptr<NcclLink>> Open(const NcclId& id, NcclPlace place) = 0;

  // The end of all that the compute stream was given so far.
  virtual absl::StatusOr<std::unique_ptr<DeviceEvent>> MarkCompute() = 0;
  // What the compute stream is given from now on waits for the event; the caller does not.
  virtual absl::Status ComputeWaitsFor(const DeviceEvent& event) = 0;
  virtual absl::StatusOr<bool> Reached(const DeviceEvent& event) = 0;

  // Memory of the device, taken and given back one by one: for tests and tools. Outlived by none of
  // what it gave.
  virtual Allocator& memory() = 0;
  // Between the device and the host or within one, behind what the compute stream was given; blocks
  // until the bytes are there.
  virtual absl::Status Copy(const Tensor& from, const Tensor& to) = 0;
};

struct NcclDeviceOptions {
  int index = 0;                   // of the GPU, as CUDA counts
  void* compute_stream = nullptr;  // cudaStream_t, outlives the device; null: one of its own
};

// kFailedPrecondition: this build has no NCCL, its library is not found or too old, there is no
// driver or no such GPU; the message says which.
absl::StatusOr<std::shared_ptr<NcclDevice>> OpenNcclDevice(const NcclDeviceOptions& options);

// Why there is no group on GPUs on this machine; empty where there may be one.
std::string WhyNoNccl();
// "2.28.9", of the library that would be used, whether there is a GPU or not. kFailedPrecondition
// as above.
absl::StatusOr<std::string> NcclVersion();

// A message of fixed size from the rank that made an id, or failed to, to the others of the group.
constexpr size_t kNcclIdMessageBytes = 256;
std::string WrapNcclId(const absl::StatusOr<NcclId>& id);
// kInternal: what the other rank could not do; kInvalidArgument: no such message.
absl::StatusOr<NcclId> UnwrapNcclId(std::string_view message);

}  // namespace cadre
