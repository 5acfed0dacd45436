#include <filesystem>
#include <set>

#include "core/file.h"
#include "model/hf_config.h"
#include "model/hf_folder.h"
#include "model/tensor_save.h"
#include "parallel/agree.h"
#include "parallel/groups.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

// What a tensor had in the folder that the model came from, or the save's own type.
StoredType TypeOf(const SaveWeightsOptions& options, const ParamSpec& spec,
                  const std::string& tensor) {
  if (options.tensors != nullptr) {
    auto it = options.tensors->types.find(tensor);
    if (it != options.tensors->types.end()) return it->second;
  }
  return spec.fp32 ? StoredType::kF32 : options.type;
}

absl::Status CopyTokenizer(const std::string& from, const std::string& to) {
  std::error_code error;
  if (from.empty() || fs::equivalent(from, to, error)) return absl::OkStatus();
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
        "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"}) {
    std::string source = from + "/" + name;
    if (!fs::exists(source, error)) continue;
    CADRE_ASSIGN_OR_RETURN(std::string bytes, ReadFile(source));
    CADRE_RETURN_IF_ERROR(WriteFileAtomic(to + "/" + name, bytes));
  }
  return absl::OkStatus();
}

absl::Status RemoveStale(const std::string& folder, const std::set<std::string>& written) {
  std::error_code error;
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    std::string name = entry.path().filename();
    bool weights = name.starts_with("model") &&
                   (name.ends_with(".safetensors") || name == "model.safetensors.index.json");
    if (weights && !written.contains(name)) stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) fs::remove(path, error);
  if (error) return Unavailable("{}: {}", folder, error.message());
  return SyncFolder(folder);
}

const char* TorchName(StoredType type) {
  switch (type) {
    case StoredType::kF32:
      return "float32";
    case StoredType::kF16:
      return "float16";
    case StoredType::kF64:
      return "float64";
    default:
      return "bfloat16";
  }
}

}  // namespace

namespace {

// The files beside the tensors, by one rank.
absl::Status WriteRest(const SaveWeightsOptions& options, const std::set<std::string>& written) {
  const std::string& folder = options.folder;
  CADRE_RETURN_IF_ERROR(WriteFileAtomic(folder + "/config.json",
                                        HfConfigJson(*options.config, TorchName(options.type))));
  CADRE_RETURN_IF_ERROR(
      WriteFileAtomic(folder + "/generation_config.json", GenerationConfigJson(*options.config)));
  CADRE_RETURN_IF_ERROR(CopyTokenizer(options.tokenizer_folder, folder));
  return RemoveStale(folder, written);
}

}  // namespace

std::vector<ParamPiece> WholeWeights(const ParameterStore& store) {
  std::vector<ParamPiece> pieces;
  for (ParamId id = 0; id < store.size(); ++id) {
    Tensor view = store.View(store.buckets()[store.bucket_of(id)].weights, id);
    pieces.push_back({.param = id, .values = view.Reshape({view.numel()})});
  }
  return pieces;
}

absl::Status SaveWeights(const ParameterStore& store, std::span<const ParamPiece> weights,
                         const SaveWeightsOptions& options) {
  std::error_code error;
  const bool first = GroupRank(options.group) == 0;
  if (first) fs::create_directories(options.folder, error);
  absl::Status status =
      error ? Unavailable("{}: {}", options.folder, error.message()) : absl::OkStatus();
  CADRE_RETURN_IF_ERROR(AgreeIn(options.group, status, {"folder of weights"}));
  TensorFiles files{.folder = options.folder,
                    .metadata = {{"format", "pt"}},
                    .max_shard_bytes = options.max_shard_bytes,
                    .type = [&](const ParamSpec& spec, const ParamSource& source, DType) {
                      return TypeOf(options, spec, source.tensor);
                    }};
  if (options.tensors != nullptr) files.carried = &options.tensors->carried;
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         SaveTensors(store, weights, files, options.group));
  if (first) status = WriteRest(options, {names.begin(), names.end()});
  return AgreeIn(options.group, status, {"model's files"});
}

}  // namespace cadre
