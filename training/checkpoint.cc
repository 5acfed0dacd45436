#include "training/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "core/file.h"
#include "core/parallel_for.h"
#include "core/safetensors.h"
#include "proto/train_config.pb.h"
#include "training/checkpoint_state.h"

namespace cadre {
namespace {

constexpr int64_t kCopyBytes = 1 << 22;

void CopyTensor(Context& ctx, const Tensor& from, const Tensor& to) {
  ParallelFor(ctx, static_cast<int64_t>(from.bytes()), kCopyBytes, [&](int64_t begin, int64_t end) {
    std::memcpy(to.raw() + begin, from.raw() + begin, static_cast<size_t>(end - begin));
  });
}

Tensor EmptyLike(Allocator& allocator, const Tensor& tensor) {
  return Tensor::Empty(allocator, tensor.shape(), tensor.dtype());
}

}  // namespace

CheckpointSaver::CheckpointSaver(CheckpointSaverOptions options, const ParameterStore& store,
                                 const Optimizer& optimizer, Allocator& allocator)
    : options_(std::move(options)), store_(store) {
  live_.weights = PreciseWeights(store, optimizer);
  for (OptimizerSlot& slot : optimizer.Slots()) {
    if (slot.name != kMasterSlot) live_.slots.push_back(std::move(slot));
  }
  if (!options_.async) return;
  for (size_t b = 0; b < live_.weights.size(); ++b) {
    // Weights that never change are written as they lie.
    const Tensor& weights = live_.weights[b];
    copy_.weights.push_back(BucketChanges(store, b) ? EmptyLike(allocator, weights) : weights);
  }
  for (const OptimizerSlot& slot : live_.slots) {
    OptimizerSlot& copy = copy_.slots.emplace_back(OptimizerSlot{.name = slot.name});
    for (const Tensor& tensor : slot.buckets) {
      copy.buckets.push_back(tensor.defined() ? EmptyLike(allocator, tensor) : Tensor());
    }
  }
}

CheckpointSaver::~CheckpointSaver() {
  if (worker_.joinable()) worker_.join();
}

void CheckpointSaver::TakeSnapshot(Context& ctx) {
  for (size_t b = 0; b < live_.weights.size(); ++b) {
    if (BucketChanges(store_, b)) CopyTensor(ctx, live_.weights[b], copy_.weights[b]);
    for (size_t s = 0; s < live_.slots.size(); ++s) {
      const Tensor& from = live_.slots[s].buckets[b];
      if (from.defined()) CopyTensor(ctx, from, copy_.slots[s].buckets[b]);
    }
  }
}

void CheckpointSaver::Save(Context& ctx, CheckpointState state) {
  if (worker_.joinable()) worker_.join();
  // An error that nobody has polled yet is not lost.
  absl::Status earlier = outcome_;
  auto run = [this, earlier](const Snapshot& snapshot, const CheckpointState& state) {
    absl::Status status = Write(snapshot, state);
    if (status.ok()) saved_step_ = state.step;
    outcome_ = earlier.ok() ? status : earlier;
    running_ = false;
  };
  running_ = true;
  if (!options_.async) return run(live_, state);
  TakeSnapshot(ctx);
  worker_ = std::thread([this, run, state = std::move(state)] { run(copy_, state); });
}

absl::Status CheckpointSaver::Poll() {
  if (running_) return absl::OkStatus();
  return std::exchange(outcome_, absl::OkStatus());
}

absl::Status CheckpointSaver::Wait() {
  if (worker_.joinable()) worker_.join();
  return Poll();
}

absl::Status CheckpointSaver::Write(const Snapshot& snapshot, const CheckpointState& state) {
  auto folder = StartCheckpoint(options_.root, state.step);
  absl::Status status = folder.status();
  if (status.ok()) status = WriteInto(*folder, snapshot, state);
  if (status.ok()) status = PublishCheckpoint(options_.root, *folder, state.step);
  if (!status.ok()) {
    if (folder.ok()) DiscardCheckpoint(*folder);
    return Annotate(status, fmt::format("checkpoint of step {} not saved", state.step));
  }
  return PruneCheckpoints(options_.root, options_.keep_last, state.step);
}

absl::Status CheckpointSaver::WriteInto(const std::string& folder, const Snapshot& snapshot,
                                        const CheckpointState& state) {
  CADRE_RETURN_IF_ERROR(options_.save_weights(
      folder, [&](ParamId id) { return store_.View(snapshot.weights[store_.bucket_of(id)], id); }));
  CADRE_RETURN_IF_ERROR(WriteFileAtomic(folder + "/train_config.yaml", state.config));
  std::string optimizer = folder + "/optimizer";
  std::error_code error;
  std::filesystem::create_directory(optimizer, error);
  if (error) return ErrnoError(optimizer, "cannot create", error.value());
  OptimizerSlot master{.name = kMasterSlot, .buckets = snapshot.weights};
  CADRE_RETURN_IF_ERROR(WriteSlot(optimizer, master));
  for (const OptimizerSlot& slot : snapshot.slots) {
    CADRE_RETURN_IF_ERROR(WriteSlot(optimizer, slot));
  }
  CADRE_RETURN_IF_ERROR(SyncFolder(optimizer));
  CADRE_ASSIGN_OR_RETURN(Manifest manifest, DescribeFolder(folder, state));
  CADRE_RETURN_IF_ERROR(WriteManifest(folder, manifest));
  return SyncFolder(folder);
}

absl::Status CheckpointSaver::WriteSlot(const std::string& folder, const OptimizerSlot& slot) {
  std::vector<SafetensorsEntry> entries;
  std::vector<Tensor> tensors;
  for (ParamId id = 0; id < store_.size(); ++id) {
    const Tensor& bucket = slot.buckets[store_.bucket_of(id)];
    if (!bucket.defined() || !Changes(store_.spec(id))) continue;
    Tensor view = store_.View(bucket, id);
    auto dims = view.shape().dims();
    entries.push_back({.name = store_.spec(id).name,
                       .type = ToStoredType(view.dtype()),
                       .shape = {dims.begin(), dims.end()}});
    tensors.push_back(view);
  }
  std::string path = fmt::format("{}/{}.safetensors", folder, slot.name);
  CADRE_ASSIGN_OR_RETURN(auto writer, SafetensorsWriter::Create(path, entries, {}));
  for (const Tensor& tensor : tensors) {
    CADRE_RETURN_IF_ERROR(writer.Append(std::span(tensor.raw(), tensor.bytes())));
  }
  return writer.Finish();
}

int64_t SnapshotBytes(const config::OptimizerConfig& config, const ParameterStore& store,
                      DType compute) {
  int64_t bytes = 0;
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    if (!Changes(spec)) continue;
    // One precise weight and the optimizer's slots; masters of bf16 weights are in both counts.
    bytes += spec.shape.numel() * (compute == DType::kF64 ? 8 : 4);
    bool has_master = spec.trainable && !spec.fp32 && compute == DType::kBF16;
    if (has_master) bytes -= spec.shape.numel() * 4;
  }
  return bytes + OptimizerStateBytes(config, store, compute);
}

int64_t WriteBufferBytes(const ParameterStore& store, DType compute) {
  int64_t most = 0;
  for (ParamId id = 0; id < store.size(); ++id) {
    for (const ParamSource& source : store.spec(id).sources) {
      const bool as_it_lies =
          source.layout == ParamSource::Layout::kPlain && compute != DType::kBF16;
      if (!as_it_lies) most = std::max(most, source.shape.numel());
    }
  }
  return most * static_cast<int64_t>(SizeOf(compute));
}

}  // namespace cadre
