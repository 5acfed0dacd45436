#include <algorithm>
#include <charconv>
#include <cstring>

#include <fmt/ranges.h>

#include "core/ops/elementwise.h"
#include "core/ops/quantize.h"
#include "core/parallel_for.h"
#include "core/tape.h"
#include "model/gguf_blocks.h"
#include "model/gguf_model.h"
#include "model/model_build.h"

namespace cadre {
namespace {

// Where a Hugging Face tensor lies in the file.
struct Place {
  std::string tensor;
  int64_t expert = -1;  // of a stack of experts
};

struct NamePair {
  std::string_view hf, gguf;
};

constexpr NamePair kGlobal[] = {{"model.embed_tokens.weight", "token_embd.weight"},
                                {"model.norm.weight", "output_norm.weight"},
                                {"lm_head.weight", "output.weight"}};

// Behind "model.layers.N." and "blk.N.".
constexpr NamePair kLayer[] = {{"input_layernorm.weight", "attn_norm.weight"},
                               {"post_attention_layernorm.weight", "ffn_norm.weight"},
                               {"self_attn.q_proj.", "attn_q."},
                               {"self_attn.k_proj.", "attn_k."},
                               {"self_attn.v_proj.", "attn_v."},
                               {"self_attn.o_proj.", "attn_output."},
                               {"self_attn.q_norm.", "attn_q_norm."},
                               {"self_attn.k_norm.", "attn_k_norm."},
                               {"mlp.gate_proj.", "ffn_gate."},
                               {"mlp.up_proj.", "ffn_up."},
                               {"mlp.down_proj.", "ffn_down."},
                               {"mlp.gate.", "ffn_gate_inp."},
                               {"block_sparse_moe.gate.", "ffn_gate_inp."}};

// Behind "experts.E.".
constexpr NamePair kExpert[] = {
    {"gate_proj.weight", "ffn_gate_exps.weight"}, {"up_proj.weight", "ffn_up_exps.weight"},
    {"down_proj.weight", "ffn_down_exps.weight"}, {"w1.weight", "ffn_gate_exps.weight"},
    {"w3.weight", "ffn_up_exps.weight"},          {"w2.weight", "ffn_down_exps.weight"}};

// The number at the front of `text`, which loses it and the dot behind it.
int64_t TakeNumber(std::string_view* text) {
  int64_t number = -1;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  CADRE_CHECK(error == std::errc() && *end == '.', "no number before {}", *text);
  text->remove_prefix(static_cast<size_t>(end - text->data()) + 1);
  return number;
}

Place PlaceOf(std::string_view name) {
  for (const NamePair& pair : kGlobal) {
    if (name == pair.hf) return {std::string(pair.gguf)};
  }
  constexpr std::string_view kLayers = "model.layers.", kExperts = "experts.";
  CADRE_CHECK(name.starts_with(kLayers), "{} has no name in GGUF", name);
  std::string_view rest = name.substr(kLayers.size());
  const std::string block = fmt::format("blk.{}.", TakeNumber(&rest));
  if (const size_t at = rest.find(kExperts); at != std::string_view::npos) {
    rest.remove_prefix(at + kExperts.size());
    const int64_t expert = TakeNumber(&rest);
    for (const NamePair& pair : kExpert) {
      if (rest == pair.hf) return {block + std::string(pair.gguf), expert};
    }
  }
  for (const NamePair& pair : kLayer) {
    if (!rest.starts_with(pair.hf)) continue;
    return {fmt::format("{}{}{}", block, pair.gguf, rest.substr(pair.hf.size()))};
  }
  CADRE_CHECK(false, "{} has no name in GGUF", name);
  return {};
}

// Rows of a stored tensor that are one source of a parameter.
struct Rows {
  const GgufTensor* tensor = nullptr;
  const std::byte* data = nullptr;
  int64_t n = 0, k = 0;
  // Rows of a head, where the file has the halves of each head's rotary pairs interleaved.
  int64_t head_rows = 0;

  bool quantized() const { return BlockOf(tensor->type).elements > 1; }
  // Of row r as Hugging Face counts them.
  const std::byte* Row(int64_t r) const {
    if (head_rows > 0) {
      const int64_t in_head = r % head_rows, half = head_rows / 2;
      r += in_head % half * 2 + in_head / half - in_head;
    }
    return data + r * tensor->row_bytes();
  }
};

// llama's q and k come with rotary pairs side by side.
int64_t HeadRows(const DecoderSpec& spec, const Place& place, bool llama) {
  const bool rotated = place.tensor.find("attn_q.") != std::string::npos ||
                       place.tensor.find("attn_k.") != std::string::npos;
  return llama && rotated ? spec.layers[0].attention.head_dim : 0;
}

struct OpenGguf {
  GgufFile file;
  bool llama;
};

absl::StatusOr<Rows> FindRows(const OpenGguf& gguf, const DecoderSpec& spec,
                              const ParamSource& source) {
  const Place place = PlaceOf(source.tensor);
  const GgufTensor* tensor = gguf.file.Find(place.tensor);
  if (tensor == nullptr) {
    return NotFound("{}: tensor {} is missing", gguf.file.name(), place.tensor);
  }
  std::vector<int64_t> wanted(source.shape.dims().begin(), source.shape.dims().end());
  std::vector<int64_t> found = tensor->shape;
  if (place.expert >= 0) {
    if (found.size() != 3 || place.expert >= found[0]) found = {0};
    if (found.size() == 3) found.erase(found.begin());
  }
  if (found != wanted) {
    return InvalidArgument("{}: tensor {} has shape [{}] (wanted: {}{})", gguf.file.name(),
                           place.tensor, fmt::join(tensor->shape, ", "), source.shape.ToString(),
                           place.expert >= 0 ? " of each expert" : "");
  }
  Rows rows{.tensor = tensor, .data = tensor->bytes.data()};
  rows.k = wanted.size() == 1 ? wanted[0] : wanted[1];
  rows.n = wanted.size() == 1 ? 1 : wanted[0];
  rows.data += std::max<int64_t>(place.expert, 0) * rows.n * tensor->row_bytes();
  rows.head_rows = HeadRows(spec, place, gguf.llama);
  if (rows.head_rows % 2 != 0 || (wanted.size() == 1 && rows.head_rows > 0)) {
    return Unimplemented("{}: tensor {}: a bias of rotary queries or keys, or an odd head size",
                         gguf.file.name(), place.tensor);
  }
  return rows;
}

absl::StatusOr<std::vector<Rows>> FindSources(const OpenGguf& gguf, const DecoderSpec& spec,
                                              const ParamSpec& param) {
  std::vector<Rows> all;
  for (const ParamSource& source : param.sources) {
    CADRE_ASSIGN_OR_RETURN(Rows rows, FindRows(gguf, spec, source));
    all.push_back(rows);
  }
  return all;
}

// Whether a parameter can be kept as the file has it.
bool StaysQuantized(const ParamSpec& param, const std::vector<Rows>& sources) {
  return param.shape.rank() >= 2 && (param.use != ParamUse::kOther || param.layer < 0) &&
         std::ranges::all_of(sources, &Rows::quantized);
}

QuantizedRows ToQuantized(Context& ctx, const Rows& rows) {
  QuantizedRows out = EmptyGgufRows(ctx, rows.tensor->type, rows.n, rows.k);
  ParallelFor(ctx, rows.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) UnpackGgufRow(rows.tensor->type, rows.Row(r), r, &out);
  });
  return out;
}

// Neighbours of one kind become one run of rows.
std::vector<QuantizedMatrix> Pack(Context& ctx, std::span<const Rows> sources) {
  std::vector<QuantizedMatrix> runs;
  for (size_t i = 0; i < sources.size();) {
    std::vector<QuantizedRows> parts;
    const GgufType type = sources[i].tensor->type;
    for (; i < sources.size() && sources[i].tensor->type == type; ++i) {
      parts.push_back(ToQuantized(ctx, sources[i]));
    }
    runs.push_back(ops::PackQuantized(ctx, parts));
  }
  return runs;
}

void FillFloats(Context& ctx, const std::vector<Rows>& sources, const Tensor& weight) {
  int64_t begin = 0;
  const Tensor flat = weight.Reshape({weight.numel()});
  for (const Rows& rows : sources) {
    constexpr int64_t kAtOnce = int64_t{1} << 22;  // elements
    const int64_t step = std::max<int64_t>(1, kAtOnce / rows.k);
    for (int64_t r = 0; r < rows.n; r += step) {
      const int64_t count = std::min(step, rows.n - r);
      Tensor wide = ctx.Empty({count * rows.k}, DType::kF32);
      for (int64_t i = 0; i < count; ++i) {
        GgufRowToFloats(rows.tensor->type, rows.Row(r + i), rows.k,
                        wide.data<float>() + i * rows.k);
      }
      ops::ConvertInto(ctx, wide, flat.Narrow(begin, count * rows.k));
      begin += count * rows.k;
    }
  }
}

void Fill(Context& ctx, ParamId id, const std::vector<Rows>& sources, bool integers) {
  ParameterStore& store = *ctx.parameters;
  if (!integers) {
    LeasedWeight weight(ctx, id, Lease::kWrite);
    return FillFloats(ctx, sources, weight.tensor());
  }
  const Shape& shape = store.spec(id).shape;
  const size_t matrices = shape.rank() == 3 ? static_cast<size_t>(shape[0]) : 1;
  const size_t each = sources.size() / matrices;
  QuantizedParam param;
  for (size_t m = 0; m < matrices; ++m) {
    param.push_back(Pack(ctx, std::span(sources).subspan(m * each, each)));
  }
  store.SetQuantized(id, std::move(param));
}

// What belongs to no parameter.
absl::Status CheckLeftovers(const OpenGguf& gguf, const std::vector<std::vector<Rows>>& sources) {
  std::vector<const GgufTensor*> used;
  for (const auto& rows : sources) {
    for (const Rows& row : rows) used.push_back(row.tensor);
  }
  std::sort(used.begin(), used.end());
  for (const GgufTensor& tensor : gguf.file.tensors()) {
    if (std::binary_search(used.begin(), used.end(), &tensor)) continue;
    return InvalidArgument("{}: tensor {} belongs to no part of the model", gguf.file.name(),
                           tensor.name);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadGgufModel(const Context& ctx, const std::string& path,
                                                     const ModelOptions& options) {
  if (options.gradients || options.parts || !options.decoder.part.whole()) {
    return Unimplemented("{}: a GGUF file is served by one process, not trained or shared out",
                         path);
  }
  CADRE_ASSIGN_OR_RETURN(GgufFile file, GgufFile::Open(path));
  CADRE_ASSIGN_OR_RETURN(HfConfig config, GgufConfig(file));
  CADRE_ASSIGN_OR_RETURN(const std::string_view arch, file.GetString("general.architecture"));
  const OpenGguf gguf{std::move(file), arch == "llama"};
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, DescribeModel(std::move(config), options));
  ParameterStore& store = model->parameters();
  std::vector<std::vector<Rows>> sources;
  std::map<std::string, bool> native;
  const bool as_stored =
      options.weights == WeightFormat::kStored || options.weights == WeightFormat::kPanels;
  for (ParamId id = 0; id < store.size(); ++id) {
    CADRE_ASSIGN_OR_RETURN(std::vector<Rows> found,
                           FindSources(gguf, model->spec(), store.spec(id)));
    native[store.spec(id).name] = StaysQuantized(store.spec(id), found);
    if (!as_stored && native[store.spec(id).name]) {
      return InvalidArgument("{}: tensor {} is {} already: weights can only be 'stored'", path,
                             found[0].tensor->name, Name(found[0].tensor->type));
    }
    sources.push_back(std::move(found));
  }
  CADRE_RETURN_IF_ERROR(CheckLeftovers(gguf, sources));
  if (as_stored) {
    store.KeepQuantized(
        [&](const ParamSpec& spec) { return spec.quantized || native.at(spec.name); });
  }
  AllocateModel(ctx, options, /*zeroed=*/true, model.get());
  Context load = {.allocator = ctx.allocator, .threads = ctx.threads, .parameters = &store};
  for (ParamId id = 0; id < store.size(); ++id) {
    const std::vector<Rows>& rows = sources[static_cast<size_t>(id)];
    Fill(load, id, rows, as_stored && native[store.spec(id).name]);
    if (const QuantizedParam* codes = store.quantized(id)) {
      CADRE_RETURN_IF_ERROR(
          ops::CheckScales(fmt::format("{}: tensor {}", path, rows.front().tensor->name), *codes));
    }
  }
  store.WeightsChanged();
  return model;
}

}  // namespace cadre
