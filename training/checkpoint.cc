#include "training/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "core/file.h"
#include "core/parallel_for.h"
#include "model/tensor_save.h"
#include "parallel/agree.h"
#include "parallel/groups.h"
#include "proto/train_config.pb.h"

namespace cadre {
namespace {

constexpr int64_t kCopyBytes = 1 << 22;

void CopyTensor(Context& ctx, const Tensor& from, const Tensor& to) {
  ParallelFor(ctx, static_cast<int64_t>(from.bytes()), kCopyBytes, [&](int64_t begin, int64_t end) {
    std::memcpy(to.raw() + begin, from.raw() + begin, static_cast<size_t>(end - begin));
  });
}

std::vector<ParamPiece> EmptyLike(Allocator& allocator, const std::vector<ParamPiece>& pieces) {
  std::vector<ParamPiece> empty = pieces;
  for (ParamPiece& piece : empty) {
    piece.values = Tensor::Empty(allocator, piece.values.shape(), piece.values.dtype());
  }
  return empty;
}

void CopyPieces(Context& ctx, const std::vector<ParamPiece>& from,
                const std::vector<ParamPiece>& to) {
  for (size_t i = 0; i < from.size(); ++i) {
    // Weights that never change are written as they lie.
    if (to[i].values.raw() != from[i].values.raw()) CopyTensor(ctx, from[i].values, to[i].values);
  }
}

}  // namespace

CheckpointSaver::CheckpointSaver(CheckpointSaverOptions options, const ParameterStore& store,
                                 StatePart state, Allocator& allocator)
    : options_(std::move(options)), store_(store), live_(std::move(state)) {
  if (!options_.async) return;
  for (const ParamPiece& piece : live_.weights) {
    ParamPiece& copy = copy_.weights.emplace_back(piece);
    if (!Changes(store.spec(piece.param))) continue;
    copy.values = Tensor::Empty(allocator, piece.values.shape(), piece.values.dtype());
  }
  for (const StateSlot& slot : live_.slots) {
    copy_.slots.push_back({slot.name, EmptyLike(allocator, slot.pieces)});
  }
}

CheckpointSaver::~CheckpointSaver() {
  if (worker_.joinable()) worker_.join();
}

void CheckpointSaver::TakeSnapshot(Context& ctx) {
  CopyPieces(ctx, live_.weights, copy_.weights);
  for (size_t s = 0; s < live_.slots.size(); ++s) {
    CopyPieces(ctx, live_.slots[s].pieces, copy_.slots[s].pieces);
  }
}

void CheckpointSaver::Save(Context& ctx, CheckpointState state) {
  if (worker_.joinable()) worker_.join();
  // An error that nobody has polled yet is not lost.
  absl::Status earlier = outcome_;
  auto run = [this, earlier](const StatePart& snapshot, const CheckpointState& state) {
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

template <typename Body>
absl::Status CheckpointSaver::ByFirstRank(const char* what, Body&& body) {
  const absl::Status status = GroupRank(options_.group) == 0 ? body() : absl::OkStatus();
  return AgreeIn(options_.group, status, {what});
}

// Ranks that save different steps or slots would wait for one another for ever.
absl::Status CheckpointSaver::CheckTogether(const CheckpointState& state) {
  if (options_.group == nullptr) return absl::OkStatus();
  std::string mine = fmt::format("step {}, slots", state.step);
  for (const StateSlot& slot : live_.slots) mine += " " + slot.name;
  CADRE_ASSIGN_OR_RETURN(auto all, GatherText(*options_.group, mine, {"checkpoint"}));
  for (size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] != all[0]) {
      return Internal("rank 0 saves {}, rank {} saves {}", all[0], rank, all[rank]);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> CheckpointSaver::StartTogether(int64_t step) {
  Communicator* group = options_.group;
  std::string folder;
  CADRE_RETURN_IF_ERROR(ByFirstRank("checkpoint's folder", [&]() -> absl::Status {
    CADRE_ASSIGN_OR_RETURN(folder, StartCheckpoint(options_.root, step));
    return absl::OkStatus();
  }));
  if (group == nullptr) return folder;
  const std::string name = std::filesystem::path(folder).filename().string();
  CADRE_ASSIGN_OR_RETURN(const auto all, GatherText(*group, name, {"checkpoint's folder"}));
  return options_.root + "/" + all[0];
}

absl::Status CheckpointSaver::WriteTogether(const StatePart& snapshot,
                                            const CheckpointState& state) {
  CADRE_RETURN_IF_ERROR(CheckTogether(state));
  CADRE_ASSIGN_OR_RETURN(const std::string folder, StartTogether(state.step));
  absl::Status status = WriteInto(folder, snapshot, state);
  if (status.ok()) {
    status = ByFirstRank("checkpoint published",
                         [&] { return PublishCheckpoint(options_.root, folder, state.step); });
  }
  if (!status.ok() && GroupRank(options_.group) == 0) DiscardCheckpoint(folder);
  return status;
}

absl::Status CheckpointSaver::Write(const StatePart& snapshot, const CheckpointState& state) {
  if (absl::Status status = WriteTogether(snapshot, state); !status.ok()) {
    return Annotate(status, fmt::format("checkpoint of step {} not saved", state.step));
  }
  return ByFirstRank("old checkpoints removed", [&] {
    return PruneCheckpoints(options_.root, options_.keep_last, state.step);
  });
}

absl::Status CheckpointSaver::WriteInto(const std::string& folder, const StatePart& snapshot,
                                        const CheckpointState& state) {
  Communicator* group = options_.group;
  CADRE_RETURN_IF_ERROR(AgreeIn(group, options_.save_weights(folder, snapshot.weights, group),
                                {"checkpoint's weights"}));
  const std::string optimizer = folder + "/optimizer";
  CADRE_RETURN_IF_ERROR(ByFirstRank("checkpoint's configuration", [&]() -> absl::Status {
    CADRE_RETURN_IF_ERROR(WriteFileAtomic(folder + "/train_config.yaml", state.config));
    std::error_code error;
    std::filesystem::create_directory(optimizer, error);
    if (error) return ErrnoError(optimizer, "cannot create", error.value());
    return absl::OkStatus();
  }));
  CADRE_RETURN_IF_ERROR(WriteSlot(optimizer, MasterSlot(store_, snapshot.weights)));
  for (const StateSlot& slot : snapshot.slots) {
    CADRE_RETURN_IF_ERROR(WriteSlot(optimizer, slot));
  }
  auto manifest = DescribeFolder(folder, state, group);
  CADRE_RETURN_IF_ERROR(AgreeIn(group, manifest.status(), {"checkpoint's checksums"}));
  return ByFirstRank("manifest", [&]() -> absl::Status {
    CADRE_RETURN_IF_ERROR(WriteManifest(folder, *manifest));
    return SyncFolder(folder);
  });
}

absl::Status CheckpointSaver::WriteSlot(const std::string& folder, const StateSlot& slot) {
  const TensorFiles files{.folder = folder,
                          .stem = slot.name,
                          .max_shard_bytes = options_.max_shard_bytes,
                          .type = [](const ParamSpec&, const ParamSource&, DType dtype) {
                            return ToStoredType(dtype);
                          }};
  return SaveTensors(store_, slot.pieces, files, options_.group).status();
}

int64_t SnapshotBytes(const config::OptimizerConfig& config, const ParameterStore& store,
                      std::span<const Shard> part) {
  int64_t bytes = OptimizerStateBytes(config, store, part);
  for (size_t b = 0; b < store.buckets().size(); ++b) {
    const ParamBucket& bucket = store.buckets()[b];
    // The optimizer's masters stand for bf16 weights.
    if (bucket.trainable && bucket.dtype == DType::kBF16) continue;
    int64_t numel = bucket.trainable ? (part.empty() ? bucket.numel : part[b].numel) : 0;
    // Router biases, which are few.
    for (const ParamId id : bucket.params) {
      if (!bucket.trainable && Changes(store.spec(id))) numel += store.spec(id).shape.numel();
    }
    bytes += numel * static_cast<int64_t>(SizeOf(bucket.dtype));
  }
  return bytes;
}

int64_t WriteBufferBytes(const ParameterStore& store) {
  int64_t largest = 0;
  for (ParamId id = 0; id < store.size(); ++id) {
    for (const ParamSource& source : store.spec(id).sources) {
      largest = std::max(largest, source.shape.numel() * 4);
    }
  }
  // The window, and a mark for each of its elements (at least two bytes).
  const int64_t window = std::min(kSaveWindowBytes, largest);
  return window + window / 2;
}

}  // namespace cadre
