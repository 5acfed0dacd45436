// Weights of a Hugging Face folder: model.safetensors, or shards with model.safetensors.index.json.
//
// Reading maps the files and fills the allocated parameters, converting to their dtype; every
// tensor of the folder is used exactly once, is carried (layers for multi-token prediction, which
// are not run) or is refused by name. Writing gives each tensor the type that it had, so that what
// is read in a dtype that holds it is written back bit for bit.
//
// One thread calls; ctx.threads convert. Errors are one line with file, tensor, value and what was
// wanted.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/parameters.h"
#include "core/safetensors.h"
#include "core/status.h"
#include "model/param_layout.h"

namespace cadre {

class Communicator;
class PackedWeights;
struct HfConfig;

// A tensor that is kept as it was.
struct CarriedTensor {
  SafetensorsEntry entry;
  std::vector<std::byte> bytes;
};

// What a folder says beyond the parameters' values; needed to write it back as it was.
struct FolderTensors {
  std::map<std::string, StoredType> types;
  std::vector<CarriedTensor> carried;
};

// Where to pack the head as it comes; nowhere where `packed` is null.
struct PackInto {
  PackedWeights* packed = nullptr;
  ParamId head = kNoParam;  // the one that makes logits, which may be the embedding
};

// Fills every parameter of ctx.parameters, reading only what this rank holds; where that is a part
// of the model, tensors that no parameter takes are left to other ranks. kNotFound: no weights
// there, or a tensor is missing. kInvalidArgument: a tensor that the model has not, or of another
// shape or type. kUnimplemented: quantized weights. They are read in the order of the files, at
// most 96 MiB or one parameter ahead of the caller's thread, which converts and packs
// (ctx.threads).
absl::StatusOr<FolderTensors> LoadWeights(Context& ctx, const std::string& folder,
                                          const HfConfig& config, const PackInto& pack = {});

// LoadWeights' checks alone, before anything is allocated for a model.
absl::Status CheckWeights(const ParameterStore& store, const std::string& folder,
                          const HfConfig& config);

struct SaveWeightsOptions {
  std::string folder;  // created where it is missing
  const HfConfig* config = nullptr;
  // Of tensors that `tensors` does not list; parameters kept in fp32 are written in fp32.
  StoredType type = StoredType::kBF16;
  const FolderTensors* tensors = nullptr;  // may be null
  int64_t max_shard_bytes = 5'000'000'000;
  // Its tokenizer files are copied, where it has them; empty: none.
  std::string tokenizer_folder;
  Communicator* group = nullptr;  // null: one process
};

// Every parameter's own weights, as they lie.
std::vector<ParamPiece> WholeWeights(const ParameterStore& store);

// Writes config.json, generation_config.json, the weights and the tokenizer's files, each file
// whole or not at all; files of an earlier save that the new one does not have are removed last.
// `weights` are what this rank hands in, compute weights or an optimizer's masters; collective over
// options.group, with SaveTensors' rules (model/tensor_save.h).
absl::Status SaveWeights(const ParameterStore& store, std::span<const ParamPiece> weights,
                         const SaveWeightsOptions& options);

}  // namespace cadre
