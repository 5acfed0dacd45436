// The weights' part of a checkpoint as a Hugging Face folder: what CheckpointSaver and
// LoadCheckpoint are given, and the export of a checkpoint.
#pragma once

#include <optional>
#include <string>

#include "core/context.h"
#include "core/safetensors.h"
#include "training/checkpoint.h"

namespace cadre {

class Model;

// What weights of this compute dtype are stored in: bf16, f32 or f64.
StoredType WeightType(DType compute);

struct HfWeightsOptions {
  StoredType type = StoredType::kBF16;
  int64_t max_shard_bytes = 5'000'000'000;
  std::string tokenizer_folder;  // its files go into each checkpoint; empty: none
};

// Writes config.json, generation_config.json, the weights and the tokenizer. `model` outlives the
// function; it works on one thread.
SaveWeightsFn HfSaveWeights(Model& model, const HfWeightsOptions& options);

// Fills the model's parameters from a checkpoint's folder. `ctx` and `model` outlive the function.
LoadWeightsFn HfLoadWeights(Context& ctx, Model& model);

// The checkpoint that `path` means, a run's output folder, its folder of checkpoints or a
// checkpoint: the newest, its files unread. kNotFound: none is there.
absl::StatusOr<std::string> NewestCheckpoint(const std::string& path);

// The same, but the newest whose files are whole; a checkpoint itself must be. kNotFound, kDataLoss
// name what is missing or altered.
absl::StatusOr<FoundCheckpoint> ResolveCheckpoint(const std::string& path);

struct ConvertCheckpointOptions {
  std::string to;                  // a folder that is empty or missing
  std::optional<StoredType> type;  // absent: as the checkpoint's weights are stored
  int64_t max_shard_bytes = 5'000'000'000;
};

// A Hugging Face folder with config.json, generation_config.json, weights and tokenizer. With a
// type, weights come from the checkpoint's full-precision copies. Needs the weights in memory once.
absl::Status ConvertCheckpoint(Context& ctx, const FoundCheckpoint& checkpoint,
                               const ConvertCheckpointOptions& options);

}  // namespace cadre
