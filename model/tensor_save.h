// Stored tensors written by all ranks that hold a part of them: each rank hands in pieces of its
// parameters, and the files come out as one process would write them.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/parameters.h"
#include "core/safetensors.h"
#include "core/status.h"
#include "model/hf_folder.h"
#include "parallel/communicator.h"

namespace cadre {

struct TensorFiles {
  std::string folder;          // exists; on a file system that all ranks share
  std::string stem = "model";  // STEM.safetensors, or shards with STEM.safetensors.index.json
  SafetensorsMetadata metadata;
  int64_t max_shard_bytes = 5'000'000'000;
  // What a tensor is stored in; a floating type.
  std::function<StoredType(const ParamSpec&, const ParamSource&, DType values)> type;
  const std::vector<CarriedTensor>* carried = nullptr;  // whole, by rank 0; the same on all ranks
};

// The most that is kept of a tensor on its way into a file.
inline constexpr int64_t kSaveWindowBytes = int64_t{8} << 20;

// Collective over `group` (null: one process). Every element of every tensor comes from exactly one
// piece of one rank; where elements are missing or come twice, the save fails by the tensor's name.
// Rank 0 makes the files under temporary names with their full size, each rank writes its elements
// in place, and rank 0 names them. Returns the files' names, or on every rank the first failing
// rank's error; then no file has changed. One thread, the group's.
absl::StatusOr<std::vector<std::string>> SaveTensors(const ParameterStore& store,
                                                     std::span<const ParamPiece> pieces,
                                                     const TensorFiles& files, Communicator* group);

}  // namespace cadre
