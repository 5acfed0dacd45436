#include <chrono>
#include <cstring>
#include <thread>

#include "core/ops/cuda_device.h"
#include "parallel/nccl_device.h"
#include "parallel/nccl_library_cuda.h"

namespace cadre {
namespace {

// For the GPU to stop.
constexpr std::chrono::seconds kStopWithin(5);
constexpr std::chrono::milliseconds kStopInterval(1);

static_assert(sizeof(NcclId) == sizeof(ncclUniqueId));
static_assert(NcclTypeOf(DType::kF64) == ncclFloat64 && NcclTypeOf(DType::kF32) == ncclFloat32 &&
              NcclTypeOf(DType::kBF16) == ncclBfloat16 && NcclTypeOf(DType::kF16) == ncclFloat16 &&
              NcclTypeOf(DType::kI8) == ncclInt8 && NcclTypeOf(DType::kU8) == ncclUint8 &&
              NcclTypeOf(DType::kI32) == ncclInt32 && NcclTypeOf(DType::kI64) == ncclInt64);
static_assert(NcclReductionOf(ReduceOp::kSum) == ncclSum &&
              NcclReductionOf(ReduceOp::kMax) == ncclMax &&
              NcclReductionOf(ReduceOp::kAverage) == ncclAvg);

absl::Status CudaStatus(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  return Internal("{}: {}", call, cudaGetErrorString(error));
}

class CudaEvent : public DeviceEvent {
 public:
  ~CudaEvent() override {
    if (event != nullptr) cudaEventDestroy(event);
  }
  cudaEvent_t event = nullptr;
};

cudaEvent_t EventOf(const DeviceEvent& event) { return static_cast<const CudaEvent&>(event).event; }

class CudaMemory : public Allocator {
 public:
  explicit CudaMemory(int index) : index_(index) {}

  std::shared_ptr<Storage> Allocate(size_t bytes) override {
    cudaSetDevice(index_);
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, std::max<size_t>(bytes, 1));
    CADRE_CHECK(error == cudaSuccess, "{} bytes on GPU {}: {}", bytes, index_,
                cudaGetErrorString(error));
    return std::make_shared<Storage>(static_cast<std::byte*>(data), bytes,
                                     Device{DeviceKind::kCuda, index_}, &Return, this);
  }

 private:
  static void Return(void* owner, std::byte* data, size_t) {
    cudaSetDevice(static_cast<CudaMemory*>(owner)->index_);
    cudaFree(data);
  }
  const int index_;
};

class CudaLink : public NcclLink {
 public:
  CudaLink(const NcclFunctions& nccl, int index) : nccl_(nccl), index_(index) {}
  ~CudaLink() override;

  absl::Status Open(const NcclId& id, NcclPlace place);

  absl::StatusOr<bool> Settled() override;
  absl::Status Launch(const NcclCalls& calls, const DeviceEvent& after) override;
  absl::Status Mark(DeviceEvent& event) override {
    cudaSetDevice(index_);
    return CudaStatus("cudaEventRecord", cudaEventRecord(EventOf(event), stream_));
  }
  absl::Status NotifyAt(const DeviceEvent& event, std::function<void()> notify) override;
  absl::StatusOr<bool> End() override;
  void Abort() override;

 private:
  absl::Status Status(const char* call, ncclResult_t result) const;
  absl::Status LaunchCall(const NcclCall& call);
  bool AwaitStop() const;

  const NcclFunctions& nccl_;
  const int index_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaStream_t notices_ = nullptr;  // a callback in stream_ would hold up what comes behind it
  void* meeting_ = nullptr;         // what kMeet sums
  bool ending_ = false;
  bool stuck_ = false;  // the GPU did not stop
};

absl::Status CudaLink::Open(const NcclId& id, NcclPlace place) {
  CADRE_RETURN_IF_ERROR(CudaStatus("cudaSetDevice", cudaSetDevice(index_)));
  for (cudaStream_t* stream : {&stream_, &notices_}) {
    CADRE_RETURN_IF_ERROR(CudaStatus("cudaStreamCreateWithFlags",
                                     cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking)));
  }
  CADRE_RETURN_IF_ERROR(CudaStatus("cudaMalloc", cudaMalloc(&meeting_, sizeof(int32_t))));
  CADRE_RETURN_IF_ERROR(
      CudaStatus("cudaMemsetAsync", cudaMemsetAsync(meeting_, 0, sizeof(int32_t), stream_)));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclUniqueId unique;
  std::memcpy(&unique, id.data(), sizeof(unique));
  return Status("ncclCommInitRankConfig",
                nccl_.comm_init(&comm_, place.size, unique, place.rank, &config));
}

absl::Status CudaLink::Status(const char* call, ncclResult_t result) const {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  const char* last = comm_ == nullptr ? nullptr : nccl_.get_last_error(comm_);
  return Internal("{}: {}{}{}", call, nccl_.get_error_string(result),
                  last == nullptr || *last == 0 ? "" : ": ", last == nullptr ? "" : last);
}

absl::StatusOr<bool> CudaLink::Settled() {
  ncclResult_t state = ncclSuccess;
  CADRE_RETURN_IF_ERROR(Status("ncclCommGetAsyncError", nccl_.comm_get_async_error(comm_, &state)));
  CADRE_RETURN_IF_ERROR(Status("NCCL", state));
  return state == ncclSuccess;
}

absl::Status CudaLink::Launch(const NcclCalls& calls, const DeviceEvent& after) {
  CADRE_RETURN_IF_ERROR(CudaStatus("cudaSetDevice", cudaSetDevice(index_)));
  CADRE_RETURN_IF_ERROR(
      CudaStatus("cudaStreamWaitEvent", cudaStreamWaitEvent(stream_, EventOf(after), 0)));
  if (calls.empty()) return absl::OkStatus();
  CADRE_RETURN_IF_ERROR(Status("ncclGroupStart", nccl_.group_start()));
  absl::Status status;
  for (const NcclCall& call : calls) status.Update(LaunchCall(call));
  // Begun, it has to end.
  status.Update(Status("ncclGroupEnd", nccl_.group_end()));
  return status;
}

absl::Status CudaLink::LaunchCall(const NcclCall& call) {
  const auto type = static_cast<ncclDataType_t>(NcclTypeOf(call.dtype));
  const auto op = static_cast<ncclRedOp_t>(NcclReductionOf(call.op));
  using Kind = NcclCall::Kind;
  switch (call.kind) {
    case Kind::kAllReduce:
      return Status("ncclAllReduce",
                    nccl_.all_reduce(call.from, call.to, call.count, type, op, comm_, stream_));
    case Kind::kReduceScatter:
      return Status("ncclReduceScatter",
                    nccl_.reduce_scatter(call.from, call.to, call.count, type, op, comm_, stream_));
    case Kind::kReduce:
      return Status("ncclReduce", nccl_.reduce(call.from, call.to, call.count, type, op, call.peer,
                                               comm_, stream_));
    case Kind::kAllGather:
      return Status("ncclAllGather",
                    nccl_.all_gather(call.from, call.to, call.count, type, comm_, stream_));
    case Kind::kBroadcast:
      return Status("ncclBroadcast", nccl_.broadcast(call.from, call.to, call.count, type,
                                                     call.peer, comm_, stream_));
    case Kind::kSend:
      return Status("ncclSend", nccl_.send(call.from, call.count, type, call.peer, comm_, stream_));
    case Kind::kReceive:
      return Status("ncclRecv",
                    nccl_.receive(call.to, call.count, type, call.peer, comm_, stream_));
    case Kind::kCopy:
      return CudaStatus("cudaMemcpyAsync",
                        cudaMemcpyAsync(call.to, call.from, call.count * SizeOf(call.dtype),
                                        cudaMemcpyDeviceToDevice, stream_));
    case Kind::kMeet:
      return Status("ncclAllReduce",
                    nccl_.all_reduce(meeting_, meeting_, 1, ncclInt32, ncclSum, comm_, stream_));
  }
  return Internal("NCCL call {}", static_cast<int>(call.kind));
}

absl::Status CudaLink::NotifyAt(const DeviceEvent& event, std::function<void()> notify) {
  cudaSetDevice(index_);
  CADRE_RETURN_IF_ERROR(
      CudaStatus("cudaStreamWaitEvent", cudaStreamWaitEvent(notices_, EventOf(event), 0)));
  auto owned = std::make_unique<std::function<void()>>(std::move(notify));
  const auto call = [](void* data) {
    const std::unique_ptr<std::function<void()>> taken(static_cast<std::function<void()>*>(data));
    (*taken)();
  };
  const cudaError_t error = cudaLaunchHostFunc(notices_, call, owned.get());
  if (error == cudaSuccess) (void)owned.release();
  return CudaStatus("cudaLaunchHostFunc", error);
}

absl::StatusOr<bool> CudaLink::End() {
  cudaSetDevice(index_);
  ending_ = true;
  CADRE_RETURN_IF_ERROR(Status("ncclCommFinalize", nccl_.comm_finalize(comm_)));
  return false;
}

bool CudaLink::AwaitStop() const {
  const auto end = std::chrono::steady_clock::now() + kStopWithin;
  while (cudaStreamQuery(stream_) == cudaErrorNotReady) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(kStopInterval);
  }
  return true;
}

void CudaLink::Abort() {
  cudaSetDevice(index_);
  if (comm_ != nullptr) nccl_.comm_abort(std::exchange(comm_, nullptr));
  stuck_ = stream_ != nullptr && !AwaitStop();
}

CudaLink::~CudaLink() {
  cudaSetDevice(index_);
  if (comm_ != nullptr && ending_) {
    nccl_.comm_destroy(comm_);
  } else if (comm_ != nullptr) {
    Abort();
  }
  for (cudaStream_t stream : {stream_, notices_}) {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
  // Waits for the GPU, which may never come to it.
  if (!stuck_) cudaFree(meeting_);
}

class CudaNcclDevice : public NcclDevice {
 public:
  CudaNcclDevice(const NcclFunctions& nccl, int index)
      : nccl_(nccl), index_(index), memory_(index) {}
  ~CudaNcclDevice() override {
    if (own_stream_) cudaStreamDestroy(compute_);
  }

  absl::Status Start(void* compute_stream);

  Device device() const override { return {DeviceKind::kCuda, index_}; }
  absl::StatusOr<NcclId> MakeId() override;
  absl::StatusOr<std::unique_ptr<NcclLink>> Open(const NcclId& id, NcclPlace place) override {
    auto link = std::make_unique<CudaLink>(nccl_, index_);
    CADRE_RETURN_IF_ERROR(link->Open(id, place));
    return link;
  }
  absl::StatusOr<std::unique_ptr<DeviceEvent>> MarkCompute() override;
  absl::Status ComputeWaitsFor(const DeviceEvent& event) override {
    cudaSetDevice(index_);
    return CudaStatus("cudaStreamWaitEvent", cudaStreamWaitEvent(compute_, EventOf(event), 0));
  }
  absl::StatusOr<bool> Reached(const DeviceEvent& event) override {
    const cudaError_t error = cudaEventQuery(EventOf(event));
    if (error == cudaErrorNotReady) return false;
    CADRE_RETURN_IF_ERROR(CudaStatus("cudaEventQuery", error));
    return true;
  }
  Allocator& memory() override { return memory_; }
  absl::Status Copy(const Tensor& from, const Tensor& to) override;

 private:
  const NcclFunctions nccl_;
  const int index_;
  CudaMemory memory_;
  cudaStream_t compute_ = nullptr;
  bool own_stream_ = false;
};

absl::Status CudaNcclDevice::Start(void* compute_stream) {
  CADRE_RETURN_IF_ERROR(CudaStatus("cudaSetDevice", cudaSetDevice(index_)));
  compute_ = static_cast<cudaStream_t>(compute_stream);
  if (compute_ != nullptr) return absl::OkStatus();
  CADRE_RETURN_IF_ERROR(CudaStatus("cudaStreamCreateWithFlags",
                                   cudaStreamCreateWithFlags(&compute_, cudaStreamNonBlocking)));
  own_stream_ = true;
  return absl::OkStatus();
}

absl::StatusOr<NcclId> CudaNcclDevice::MakeId() {
  cudaSetDevice(index_);
  ncclUniqueId unique;
  const ncclResult_t result = nccl_.get_unique_id(&unique);
  if (result != ncclSuccess) {
    return Internal("ncclGetUniqueId: {}", nccl_.get_error_string(result));
  }
  NcclId id;
  std::memcpy(id.data(), &unique, sizeof(unique));
  return id;
}

absl::StatusOr<std::unique_ptr<DeviceEvent>> CudaNcclDevice::MarkCompute() {
  cudaSetDevice(index_);
  auto event = std::make_unique<CudaEvent>();
  CADRE_RETURN_IF_ERROR(CudaStatus(
      "cudaEventCreateWithFlags", cudaEventCreateWithFlags(&event->event, cudaEventDisableTiming)));
  CADRE_RETURN_IF_ERROR(CudaStatus("cudaEventRecord", cudaEventRecord(event->event, compute_)));
  return event;
}

absl::Status CudaNcclDevice::Copy(const Tensor& from, const Tensor& to) {
  CADRE_CHECK(from.bytes() == to.bytes(), "{} bytes to {}", from.bytes(), to.bytes());
  cudaSetDevice(index_);
  CADRE_RETURN_IF_ERROR(
      CudaStatus("cudaMemcpyAsync",
                 cudaMemcpyAsync(to.raw(), from.raw(), from.bytes(), cudaMemcpyDefault, compute_)));
  return CudaStatus("cudaStreamSynchronize", cudaStreamSynchronize(compute_));
}

}  // namespace

std::string WhyNoNccl() {
  const ops::CudaDevices devices = ops::FindCudaDevices();
  if (devices.count == 0) return fmt::format("no GPU: {}", devices.reason);
  const auto nccl = LoadNccl();
  return nccl.ok() ? "" : Message(nccl.status());
}

absl::StatusOr<std::string> NcclVersion() {
  CADRE_ASSIGN_OR_RETURN(const NcclFunctions nccl, LoadNccl());
  int version = 0;
  nccl.get_version(&version);
  return NcclVersionText(version);
}

absl::StatusOr<std::shared_ptr<NcclDevice>> OpenNcclDevice(const NcclDeviceOptions& options) {
  if (const std::string why = WhyNoNccl(); !why.empty()) {
    return absl::FailedPreconditionError(why);
  }
  const int count = ops::FindCudaDevices().count;
  if (options.index < 0 || options.index >= count) {
    return absl::FailedPreconditionError(
        fmt::format("GPU {}: this machine has {}, counted from 0", options.index, count));
  }
  CADRE_ASSIGN_OR_RETURN(const NcclFunctions nccl, LoadNccl());
  auto device = std::make_shared<CudaNcclDevice>(nccl, options.index);
  CADRE_RETURN_IF_ERROR(device->Start(options.compute_stream));
  return device;
}

}  // namespace cadre
