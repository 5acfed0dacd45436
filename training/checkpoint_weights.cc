#include "training/checkpoint_weights.h"

#include <filesystem>

#include "core/file.h"
#include "model/model.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

// Trained weights are written in the run's own type; tensors that the model does not run survive.
FolderTensors CarriedOnly(const FolderTensors& tensors) { return {.carried = tensors.carried}; }

absl::Status RefuseFilled(const std::string& folder) {
  std::error_code error;
  if (fs::exists(folder, error) && !fs::is_empty(folder, error)) {
    return InvalidArgument("{}: exists and is not empty; name a new folder", folder);
  }
  fs::create_directories(folder, error);
  if (error) return ErrnoError(folder, "cannot create", error.value());
  return absl::OkStatus();
}

// Files of the Hugging Face part; the rest is for resuming.
bool IsModelFile(const std::string& name) {
  return name.find('/') == std::string::npos && name != "train_config.yaml";
}

absl::Status CopyModelFiles(const FoundCheckpoint& checkpoint, const std::string& to) {
  for (const auto& [name, file] : checkpoint.manifest.files) {
    if (!IsModelFile(name)) continue;
    std::error_code error;
    fs::copy_file(checkpoint.path + "/" + name, to + "/" + name, error);
    if (error) return ErrnoError(to + "/" + name, "cannot copy", error.value());
  }
  return SyncFolder(to);
}

bool IsCheckpoint(const std::string& path) {
  std::error_code error;
  return fs::exists(path + "/manifest.json", error);
}

// Those of a run lie in a folder in its output folder.
std::string CheckpointsOf(const std::string& path) {
  std::error_code error;
  std::string inside = path + "/checkpoints";
  return fs::is_directory(inside, error) ? inside : path;
}

absl::Status NoneThere(const std::string& path) {
  return NotFound(
      "{}: no checkpoint there (manifest.json, step-NNNNNN folders, or a run's checkpoints)", path);
}

}  // namespace

StoredType WeightType(DType compute) {
  if (compute == DType::kF64) return StoredType::kF64;
  return compute == DType::kF32 ? StoredType::kF32 : StoredType::kBF16;
}

SaveWeightsFn HfSaveWeights(Model& model, const HfWeightsOptions& options) {
  return [&model, options](const std::string& folder, std::span<const ParamPiece> weights,
                           Communicator* group) {
    const FolderTensors carried = CarriedOnly(model.folder_tensors());
    return SaveWeights(model.parameters(), weights,
                       {.folder = folder,
                        .config = &model.config(),
                        .type = options.type,
                        .tensors = &carried,
                        .max_shard_bytes = options.max_shard_bytes,
                        .tokenizer_folder = options.tokenizer_folder,
                        .group = group});
  };
}

LoadWeightsFn HfLoadWeights(Context& ctx, Model& model) {
  return [&ctx, &model](const std::string& folder) -> absl::Status {
    Context own = ctx;
    own.parameters = &model.parameters();
    CADRE_ASSIGN_OR_RETURN(model.folder_tensors(), LoadWeights(own, folder, model.config()));
    return absl::OkStatus();
  };
}

absl::StatusOr<std::string> NewestCheckpoint(const std::string& path) {
  if (IsCheckpoint(path)) return path;
  CADRE_ASSIGN_OR_RETURN(const auto checkpoints, ListCheckpoints(CheckpointsOf(path)));
  if (checkpoints.empty()) return NoneThere(path);
  return checkpoints.front().path;
}

absl::StatusOr<FoundCheckpoint> ResolveCheckpoint(const std::string& path) {
  if (IsCheckpoint(path)) {
    CADRE_ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(path));
    CADRE_RETURN_IF_ERROR(VerifyFiles(path, manifest));
    return FoundCheckpoint{path, std::move(manifest)};
  }
  std::string passed_over;
  CADRE_ASSIGN_OR_RETURN(auto found,
                         FindGoodCheckpoint(CheckpointsOf(path),
                                            [&](const std::string& line) { passed_over = line; }));
  if (found.has_value()) return *std::move(found);
  if (!passed_over.empty()) return DataLoss("{}: no good checkpoint: {}", path, passed_over);
  return NoneThere(path);
}

absl::Status ConvertCheckpoint(Context& ctx, const FoundCheckpoint& checkpoint,
                               const ConvertCheckpointOptions& options) {
  CADRE_RETURN_IF_ERROR(RefuseFilled(options.to));
  if (!options.type.has_value()) return CopyModelFiles(checkpoint, options.to);
  CADRE_ASSIGN_OR_RETURN(auto model, LoadModel(ctx, checkpoint.path, {.dtype = DType::kF32}));
  CADRE_RETURN_IF_ERROR(LoadPreciseWeights(checkpoint.path, model->parameters()));
  const SaveWeightsFn save = HfSaveWeights(*model, {.type = *options.type,
                                                    .max_shard_bytes = options.max_shard_bytes,
                                                    .tokenizer_folder = checkpoint.path});
  CADRE_RETURN_IF_ERROR(save(options.to, WholeWeights(model->parameters()), nullptr));
  return SyncFolder(options.to);
}

}  // namespace cadre
