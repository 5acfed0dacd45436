#include "model/quantized_folder.h"

#include <cstring>
#include <filesystem>
#include <map>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/ops/elementwise.h"
#include "core/ops/quantize.h"
#include "model/hf_folder.h"
#include "model/model_build.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using Found = SafetensorsFolder::Tensor;

struct Formats {
  WeightFormat format;
  const char* name;
};
constexpr Formats kFormats[] = {{WeightFormat::kInt8, "int8-row-v1"},
                                {WeightFormat::kInt4, "int4-g32-v1"}};

const char* NameOf(WeightFormat format) {
  return format == WeightFormat::kInt8 ? kFormats[0].name : kFormats[1].name;
}

struct Pair {
  SafetensorsEntry codes, scales;
};

// What is stored instead of `tensor` [n, k].
Pair EntriesOf(const std::string& tensor, int64_t n, int64_t k, WeightFormat format) {
  if (format == WeightFormat::kInt8) {
    return {{.name = CodesName(tensor), .type = StoredType::kI8, .shape = {n, k}},
            {.name = ScalesName(tensor), .type = StoredType::kF32, .shape = {n}}};
  }
  const int64_t groups = (k + ops::kInt4Group - 1) / ops::kInt4Group;
  return {{.name = CodesName(tensor), .type = StoredType::kU8, .shape = {n, (k + 1) / 2}},
          {.name = ScalesName(tensor), .type = StoredType::kF16, .shape = {n, groups}}};
}

bool IsWhole(const ParamSource& source) {
  const ParamBlock& block = source.block;
  return source.index < 0 && source.layout == ParamSource::Layout::kPlain &&
         source.shape.rank() == 2 && block.row_begin == 0 && block.column_begin == 0 &&
         (block.rows < 0 || block.rows == source.shape[0]) &&
         (block.columns < 0 || block.columns == source.shape[1]);
}

std::vector<std::byte> PackNibbles(const QuantizedRows& rows) {
  const int64_t width = (rows.k + 1) / 2;
  std::vector<std::byte> packed(static_cast<size_t>(rows.n * width));
  for (int64_t i = 0; i < rows.n * rows.k; ++i) {
    const int64_t k = i % rows.k;
    std::byte& to = packed[static_cast<size_t>(i / rows.k * width + k / 2)];
    to |= static_cast<std::byte>(rows.codes.data<int8_t>()[i] << (k % 2 * 4));
  }
  return packed;
}

// As on loading: from the compute type's floats.
QuantizedRows Quantize(Context& ctx, const Found& found, WeightFormat format) {
  const std::vector<int64_t>& shape = found.entry->shape;
  Tensor stored = ctx.Empty({shape[0], shape[1]}, *ToDType(found.entry->type));
  std::memcpy(stored.raw(), found.Bytes().data(), stored.bytes());
  return ops::QuantizeRows(ctx, ops::CastTensor(ctx, stored, DType::kBF16), format);
}

absl::Status Write(Context& ctx, const Found& found, WeightFormat format,
                   SafetensorsWriter* writer) {
  const QuantizedRows rows = Quantize(ctx, found, format);
  CADRE_RETURN_IF_ERROR(ops::CheckScales(found.entry->name, rows.scales));
  if (format == WeightFormat::kInt4) {
    CADRE_RETURN_IF_ERROR(writer->Append(PackNibbles(rows)));
  } else {
    CADRE_RETURN_IF_ERROR(writer->Append({rows.codes.raw(), rows.codes.bytes()}));
  }
  return writer->Append({rows.scales.raw(), rows.scales.bytes()});
}

// Names of the tensors that are quantized.
absl::StatusOr<std::map<std::string, const ParamSource*>> Projections(const Model& model,
                                                                      ParameterStore& store,
                                                                      const std::string& path) {
  std::map<std::string, const ParamSource*> names;
  for (ParamId id = 0; id < store.size(); ++id) {
    if (store.spec(id).use != ParamUse::kProjection) continue;
    for (const ParamSource& source : store.spec(id).sources) {
      if (!IsWhole(source)) {
        return Unimplemented("{}: tensor {}: experts of a {} are quantized on loading alone", path,
                             source.tensor, model.config().model.model_type());
      }
      names[source.tensor] = &source;
    }
  }
  return names;
}

absl::Status WriteConfig(const HfConfig& config, const std::string& to, WeightFormat format) {
  nlohmann::json json = nlohmann::json::parse(HfConfigJson(config, "bfloat16"));
  json["quantization_config"] = {{"quant_method", "cadre"}, {"fmt", NameOf(format)}};
  return WriteFileAtomic(to + "/config.json", json.dump(2) + "\n");
}

// Everything of the folder but weights and config.
absl::Status CopyOthers(const std::string& from, const std::string& to) {
  for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json",
                           "special_tokens_map.json", "chat_template.jinja", "tokenizer.model",
                           "vocab.json", "merges.txt", "added_tokens.json"}) {
    std::error_code error;
    const std::string source = from + "/" + name;
    if (!fs::exists(source, error)) continue;
    fs::copy_file(source, to + "/" + name, error);
    if (error) return ErrnoError(to + "/" + name, "cannot copy", error.value());
  }
  return SyncFolder(to);
}

}  // namespace

std::string CodesName(const std::string& tensor) { return tensor + ".codes"; }
std::string ScalesName(const std::string& tensor) { return tensor + ".scales"; }

absl::StatusOr<WeightFormat> FormatOfFolder(const HfConfig& config, const std::string& path) {
  if (!config.model.has_quantization_config()) return WeightFormat::kStored;
  const config::QuantizationConfig& quantization = config.model.quantization_config();
  // Others keep their floats under the usual names, or are refused by those that they have.
  if (quantization.quant_method() != "cadre") return WeightFormat::kStored;
  for (const Formats& known : kFormats) {
    if (quantization.fmt() == known.name) return known.format;
  }
  return Unimplemented("{}: quantization_config.fmt '{}' (allowed: {}, {})", path,
                       quantization.fmt(), kFormats[0].name, kFormats[1].name);
}

absl::Status SaveQuantizedFolder(Context& ctx, const std::string& from, const std::string& to,
                                 WeightFormat format) {
  std::error_code error;
  if (fs::exists(to, error) && !fs::is_empty(to, error)) {
    return InvalidArgument("{}: exists and is not empty; name a new folder", to);
  }
  CADRE_ASSIGN_OR_RETURN(HfConfig config, LoadHfConfig(from));
  CADRE_ASSIGN_OR_RETURN(const WeightFormat stored, FormatOfFolder(config, from));
  if (stored != WeightFormat::kStored) {
    return InvalidArgument("{}: is quantized already ({})", from, NameOf(stored));
  }
  CADRE_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, DescribeModel(config, {}));
  CADRE_RETURN_IF_ERROR(CheckWeights(model->parameters(), from, config));
  CADRE_ASSIGN_OR_RETURN(const auto projections, Projections(*model, model->parameters(), from));
  CADRE_ASSIGN_OR_RETURN(const SafetensorsFolder files, SafetensorsFolder::Open(from));
  std::vector<SafetensorsEntry> entries;
  for (const Found& found : files.tensors()) {
    if (!projections.contains(found.entry->name)) {
      entries.push_back(*found.entry);
      continue;
    }
    Pair pair = EntriesOf(found.entry->name, found.entry->shape[0], found.entry->shape[1], format);
    entries.push_back(std::move(pair.codes));
    entries.push_back(std::move(pair.scales));
  }
  fs::create_directories(to, error);
  if (error) return ErrnoError(to, "cannot create", error.value());
  CADRE_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(to + "/model.safetensors", std::move(entries), {{"format", "pt"}}));
  for (const Found& found : files.tensors()) {
    CADRE_RETURN_IF_ERROR(projections.contains(found.entry->name)
                              ? Write(ctx, found, format, &writer)
                              : writer.Append(found.Bytes()));
  }
  CADRE_RETURN_IF_ERROR(writer.Finish());
  CADRE_RETURN_IF_ERROR(WriteConfig(config, to, format));
  return CopyOthers(from, to);
}

absl::Status CheckQuantizedSource(const SafetensorsFolder& files, const std::string& path,
                                  const ParamSource& source, WeightFormat format) {
  if (!IsWhole(source)) {
    return Unimplemented(
        "{}: tensor {}: weights that are quantized ahead are read whole, by one "
        "process",
        path, source.tensor);
  }
  const Pair wanted = EntriesOf(source.tensor, source.shape[0], source.shape[1], format);
  for (const SafetensorsEntry& entry : {wanted.codes, wanted.scales}) {
    const Found found = files.Find(entry.name);
    if (found.entry == nullptr) return NotFound("{}: tensor {} is missing", path, entry.name);
    if (found.entry->shape != entry.shape || found.entry->type != entry.type) {
      return InvalidArgument("{}: tensor {} is {} [{}] (wanted: {} [{}])", found.file->path(),
                             entry.name, Name(found.entry->type),
                             fmt::join(found.entry->shape, ", "), Name(entry.type),
                             fmt::join(entry.shape, ", "));
    }
  }
  return absl::OkStatus();
}

QuantizedParam ReadQuantizedParam(Context& ctx, const SafetensorsFolder& files,
                                  const ParamSpec& spec, WeightFormat format) {
  const bool eight = format == WeightFormat::kInt8;
  std::vector<QuantizedRows> parts;
  for (const ParamSource& source : spec.sources) {
    QuantizedRows rows{.n = source.shape[0],
                       .k = source.shape[1],
                       .bits = eight ? 8 : 4,
                       .group = eight ? 0 : ops::kInt4Group,
                       .zero = eight ? 0 : 8};
    rows.codes = ctx.Empty({rows.n, rows.k}, DType::kI8);
    rows.scales = ctx.Empty({rows.n, rows.groups()}, eight ? DType::kF32 : DType::kF16);
    const std::byte* codes = files.Find(CodesName(source.tensor)).Bytes().data();
    const std::byte* scales = files.Find(ScalesName(source.tensor)).Bytes().data();
    std::memcpy(rows.scales.raw(), scales, rows.scales.bytes());
    if (eight) {
      std::memcpy(rows.codes.raw(), codes, rows.codes.bytes());
    } else {
      const int64_t width = (rows.k + 1) / 2;
      for (int64_t i = 0; i < rows.n * rows.k; ++i) {
        const int64_t k = i % rows.k;
        const std::byte pair = codes[i / rows.k * width + k / 2];
        rows.codes.data<int8_t>()[i] = std::to_integer<int8_t>(pair >> (k % 2 * 4)) & 15;
      }
    }
    parts.push_back(std::move(rows));
  }
  const size_t matrices = spec.shape.rank() == 3 ? static_cast<size_t>(spec.shape[0]) : 1;
  const size_t each = parts.size() / matrices;
  QuantizedParam param;
  for (size_t m = 0; m < matrices; ++m) {
    const auto first = parts.begin() + static_cast<std::ptrdiff_t>(m * each);
    param.push_back({ops::PackQuantized(ctx, {first, first + static_cast<std::ptrdiff_t>(each)})});
  }
  return param;
}

}  // namespace cadre
