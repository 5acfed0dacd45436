#include <algorithm>
#include <charconv>
#include <cstring>

#include "core/ops/quantize.h"
#include "core/safetensors_folder.h"
#include "model/hf_config.h"
#include "model/hf_folder.h"
#include "model/quantized_folder.h"
#include "model/read_params.h"

namespace cadre {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i)
    text += fmt::format("{}{}", i > 0 ? ", " : "", shape[i]);
  return text + "]";
}

using Found = SafetensorsFolder::Tensor;

struct OpenFolder {
  std::string path;
  SafetensorsFolder files;
};

absl::StatusOr<Found> Lookup(const OpenFolder& folder, const ParamSource& source) {
  Found found = folder.files.Find(source.tensor);
  if (found.entry == nullptr) {
    if (folder.files.Find(source.tensor + "_blocks").entry != nullptr) {
      return Unimplemented(
          "{}: tensor {}_blocks: MXFP4 weights are not read (allowed: F32, BF16, "
          "F16, F64)",
          folder.path, source.tensor);
    }
    return NotFound("{}: tensor {} is missing (wanted: {})", folder.path, source.tensor,
                    source.shape.ToString());
  }
  std::vector<int64_t> wanted(source.shape.dims().begin(), source.shape.dims().end());
  if (found.entry->shape != wanted) {
    return InvalidArgument("{}: tensor {} has shape {} (wanted: {})", found.file->path(),
                           source.tensor, ShapeText(found.entry->shape), source.shape.ToString());
  }
  std::optional<DType> dtype = ToDType(found.entry->type);
  bool floating =
      dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
  if (!floating) {
    std::string message = fmt::format("{}: tensor {} has type {} (allowed: F32, BF16, F16, F64)",
                                      found.file->path(), source.tensor, Name(found.entry->type));
    bool fp8 = found.entry->type == StoredType::kF8E4M3;
    return fp8 ? absl::UnimplementedError(message) : absl::InvalidArgumentError(message);
  }
  return found;
}

// N of "model.layers.N.": -1 for another name.
int64_t LayerOf(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  const char* end = name.data() + name.size();
  int layer = -1;
  auto [after, error] = std::from_chars(name.data() + kPrefix.size(), end, layer);
  return error == std::errc() && after != end && *after == '.' ? layer : -1;
}

// Tensors without a parameter: derived, tied, carried, another rank's or refused.
absl::Status TakeLeftover(const OpenFolder& folder, const HfConfig& config, bool part,
                          const Found& found, FolderTensors* out) {
  const std::string& name = found.entry->name;
  // Recomputed from the config; early files stored them.
  if (name.ends_with("rotary_emb.inv_freq")) return absl::OkStatus();
  Found embedding = folder.files.Find("model.embed_tokens.weight");
  if (name == "lm_head.weight" && config.model.tie_word_embeddings() &&
      embedding.entry != nullptr) {
    auto bytes = found.Bytes();
    auto tied = embedding.Bytes();
    if (std::equal(bytes.begin(), bytes.end(), tied.begin(), tied.end())) return absl::OkStatus();
    return InvalidArgument(
        "{}: tensor {} differs from model.embed_tokens.weight, to which "
        "tie_word_embeddings ties it",
        found.file->path(), name);
  }
  int64_t beyond = LayerOf(name) - config.model.num_hidden_layers();
  if (beyond >= 0 && beyond < config.model.num_nextn_predict_layers()) {
    auto bytes = found.Bytes();
    out->carried.push_back({*found.entry, {bytes.begin(), bytes.end()}});
    return absl::OkStatus();
  }
  if (part) return absl::OkStatus();  // another rank's
  return InvalidArgument("{}: tensor {} {} belongs to no part of a {}", found.file->path(), name,
                         ShapeText(found.entry->shape), config.model.model_type());
}

absl::StatusOr<FolderTensors> Check(const OpenFolder& folder, const ParameterStore& store,
                                    const HfConfig& config) {
  FolderTensors out;
  CADRE_ASSIGN_OR_RETURN(const WeightFormat format, FormatOfFolder(config, folder.path));
  for (ParamId id = 0; id < store.size(); ++id) {
    for (const ParamSource& source : store.spec(id).sources) {
      if (format != WeightFormat::kStored && store.spec(id).quantized) {
        CADRE_RETURN_IF_ERROR(CheckQuantizedSource(folder.files, folder.path, source, format));
        for (const std::string& name : {CodesName(source.tensor), ScalesName(source.tensor)}) {
          out.types[name] = folder.files.Find(name).entry->type;
        }
        continue;
      }
      CADRE_ASSIGN_OR_RETURN(Found found, Lookup(folder, source));
      out.types[source.tensor] = found.entry->type;
    }
  }
  for (const Found& found : folder.files.tensors()) {
    if (out.types.contains(found.entry->name)) continue;
    CADRE_RETURN_IF_ERROR(TakeLeftover(folder, config, store.part(), found, &out));
  }
  return out;
}

}  // namespace

absl::Status CheckWeights(const ParameterStore& store, const std::string& path,
                          const HfConfig& config) {
  CADRE_ASSIGN_OR_RETURN(SafetensorsFolder files, SafetensorsFolder::Open(path));
  return Check({path, std::move(files)}, store, config).status();
}

absl::StatusOr<FolderTensors> LoadWeights(Context& ctx, const std::string& path,
                                          const HfConfig& config, const PackInto& pack) {
  CADRE_ASSIGN_OR_RETURN(SafetensorsFolder files, SafetensorsFolder::Open(path));
  OpenFolder folder{path, std::move(files)};
  ParameterStore& store = *ctx.parameters;
  // All checks come before the first weight changes.
  CADRE_ASSIGN_OR_RETURN(FolderTensors out, Check(folder, store, config));
  CADRE_ASSIGN_OR_RETURN(const WeightFormat format, FormatOfFolder(config, path));
  store.WeightsChanged();  // before anything is packed
  std::vector<ParamId> floats;
  for (ParamId id = 0; id < store.size(); ++id) {
    if (format != WeightFormat::kStored && store.spec(id).quantized) {
      store.SetQuantized(id, ReadQuantizedParam(ctx, folder.files, store.spec(id), format));
      CADRE_RETURN_IF_ERROR(
          ops::CheckScales(store.spec(id).sources.front().tensor, *store.quantized(id)));
    } else {
      floats.push_back(id);
    }
  }
  CADRE_RETURN_IF_ERROR(ReadParams(ctx, folder.files, floats, pack));
  return out;
}

}  // namespace cadre
