#include <filesystem>
#include <set>

#include "core/file.h"
#include "core/ops/elementwise.h"
#include "core/safetensors_folder.h"
#include "model/hf_config.h"
#include "model/hf_folder.h"
#include "model/param_layout.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

// A part of a stored tensor: elements [begin, begin + count) of a parameter.
struct Piece {
  ParamId param;
  int64_t begin;
  const ParamSource* source;
};

struct StoredTensor {
  SafetensorsEntry entry;
  std::vector<Piece> pieces;  // in the order of the stored tensor's first dimension
  const CarriedTensor* carried = nullptr;
};

std::map<std::string, StoredTensor> Plan(const ParameterStore& store,
                                         const SaveWeightsOptions& options) {
  std::map<std::string, StoredTensor> plan;
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    int64_t begin = 0;
    for (const ParamSource& source : spec.sources) {
      StoredTensor& tensor = plan[source.tensor];
      tensor.entry.name = source.tensor;
      tensor.entry.shape.assign(source.shape.dims().begin(), source.shape.dims().end());
      tensor.entry.type = spec.fp32 ? StoredType::kF32 : options.type;
      if (options.tensors != nullptr) {
        auto it = options.tensors->types.find(source.tensor);
        if (it != options.tensors->types.end()) tensor.entry.type = it->second;
      }
      tensor.pieces.push_back({id, begin, &source});
      begin += BlockElements(source);
    }
  }
  if (options.tensors == nullptr) return plan;
  for (const CarriedTensor& carried : options.tensors->carried) {
    plan[carried.entry.name] = {.entry = carried.entry, .carried = &carried};
  }
  return plan;
}

// A piece's elements in `dtype`, in the parameter's own order.
Tensor Typed(Context& ctx, const Tensor& values, const Piece& piece, DType dtype) {
  Tensor part = values.Reshape({values.numel()}).Narrow(piece.begin, BlockElements(*piece.source));
  return ops::CastTensor(ctx, part, dtype);
}

// Appends a piece's elements in `dtype`, as stored.
void AppendPiece(Context& ctx, const Tensor& values, const Piece& piece, DType dtype,
                 std::vector<std::byte>* bytes) {
  Tensor typed = Typed(ctx, values, piece, dtype);
  const size_t first = bytes->size(), width = SizeOf(dtype);
  bytes->resize(first + typed.bytes());
  // Pieces come in the order of the first dimension, so this one's begins where the last ended.
  const auto stored = static_cast<int64_t>(first / width);
  const ElementWindow all{0, typed.numel(), stored, stored + typed.numel()};
  ForEachStoredRun(*piece.source, 0, all, [&](const ParamRun& run) {
    CopyElements({width, run.count, run.local_stride, run.stored_stride},
                 typed.raw() + static_cast<size_t>(run.local) * width,
                 bytes->data() + static_cast<size_t>(run.stored) * width);
  });
}

absl::Status WriteTensor(Context& ctx, const WeightsOf& weights, const StoredTensor& tensor,
                         SafetensorsFolderWriter* writer) {
  if (tensor.carried != nullptr) return writer->Write(tensor.entry.name, tensor.carried->bytes);
  const Piece& first = tensor.pieces.front();
  if (tensor.pieces.size() == 1 && first.source->layout == ParamSource::Layout::kPlain) {
    Tensor typed = Typed(ctx, weights(first.param), first, *ToDType(tensor.entry.type));
    return writer->Write(tensor.entry.name, {typed.raw(), typed.bytes()});
  }
  std::vector<std::byte> bytes;
  for (const Piece& piece : tensor.pieces) {
    AppendPiece(ctx, weights(piece.param), piece, *ToDType(tensor.entry.type), &bytes);
  }
  return writer->Write(tensor.entry.name, bytes);
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

absl::Status SaveWeights(Context& ctx, const WeightsOf& weights,
                         const SaveWeightsOptions& options) {
  const std::string& folder = options.folder;
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return Unavailable("{}: {}", folder, error.message());

  std::map<std::string, StoredTensor> plan = Plan(*ctx.parameters, options);
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : plan) entries.push_back(tensor.entry);
  CADRE_ASSIGN_OR_RETURN(
      SafetensorsFolderWriter writer,
      SafetensorsFolderWriter::Create(folder, std::move(entries), {{"format", "pt"}},
                                      options.max_shard_bytes));
  for (const auto& [name, tensor] : plan) {
    CADRE_RETURN_IF_ERROR(WriteTensor(ctx, weights, tensor, &writer));
  }
  CADRE_RETURN_IF_ERROR(writer.Finish());
  std::set<std::string> written(writer.names().begin(), writer.names().end());
  CADRE_RETURN_IF_ERROR(WriteFileAtomic(folder + "/config.json",
                                        HfConfigJson(*options.config, TorchName(options.type))));
  CADRE_RETURN_IF_ERROR(
      WriteFileAtomic(folder + "/generation_config.json", GenerationConfigJson(*options.config)));
  CADRE_RETURN_IF_ERROR(CopyTokenizer(options.tokenizer_folder, folder));
  return RemoveStale(folder, written);
}

}  // namespace cadre
