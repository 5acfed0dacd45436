#include <cmath>

#include <nlohmann/json.hpp>

#include "model/gguf_model.h"

namespace cadre {
namespace {

using Json = nlohmann::json;

struct Family {
  std::string_view gguf;
  const char* dense;
  const char* experts;  // null: has none
};

constexpr Family kFamilies[] = {{"llama", "llama", "mixtral"},
                                {"qwen2", "qwen2", nullptr},
                                {"qwen3", "qwen3", nullptr},
                                {"qwen3moe", nullptr, "qwen3_moe"}};

// Reads `key` of the architecture into the JSON, where it is there or `needed`.
class ConfigReader {
 public:
  ConfigReader(const GgufFile& file, std::string arch) : file_(file), arch_(std::move(arch)) {}

  std::string Key(const std::string& key) const { return arch_ + "." + key; }
  bool Has(const std::string& key) const { return file_.Has(Key(key)); }

  absl::Status Integer(const std::string& key, const char* to, bool needed) {
    if (!needed && !Has(key)) return absl::OkStatus();
    CADRE_ASSIGN_OR_RETURN(const int64_t value, file_.GetInteger(Key(key), 1, INT32_MAX));
    json[to] = value;
    return absl::OkStatus();
  }

  absl::Status Number(const std::string& key, const char* to, bool needed) {
    if (!needed && !Has(key)) return absl::OkStatus();
    CADRE_ASSIGN_OR_RETURN(json[to], file_.GetNumber(Key(key)));
    return absl::OkStatus();
  }

  Json json = Json::object();

 private:
  const GgufFile& file_;
  std::string arch_;
};

absl::Status ReadRope(const GgufFile& file, int64_t head_dim, ConfigReader* reader) {
  CADRE_RETURN_IF_ERROR(reader->Number("rope.freq_base", "rope_theta", false));
  if (reader->Has("rope.dimension_count")) {
    CADRE_ASSIGN_OR_RETURN(const int64_t dims,
                           file.GetInteger(reader->Key("rope.dimension_count"), 1, INT32_MAX));
    if (dims != head_dim) {
      return Unimplemented("{}: {} {} (allowed: the head size, {})", file.name(),
                           reader->Key("rope.dimension_count"), dims, head_dim);
    }
  }
  if (file.Find("rope_freqs.weight") != nullptr) {
    return Unimplemented("{}: rope_freqs.weight: rotary factors of a file are not read",
                         file.name());
  }
  if (!reader->Has("rope.scaling.type")) return absl::OkStatus();
  CADRE_ASSIGN_OR_RETURN(const std::string_view type,
                         file.GetString(reader->Key("rope.scaling.type")));
  if (type == "none") return absl::OkStatus();
  if (type != "linear" && type != "yarn") {
    return Unimplemented("{}: {} '{}' (allowed: none, linear, yarn)", file.name(),
                         reader->Key("rope.scaling.type"), type);
  }
  Json scaling = {{"rope_type", std::string(type)}};
  CADRE_ASSIGN_OR_RETURN(scaling["factor"], file.GetNumber(reader->Key("rope.scaling.factor")));
  const std::string original = reader->Key("rope.scaling.original_context_length");
  if (file.Has(original)) {
    CADRE_ASSIGN_OR_RETURN(scaling["original_max_position_embeddings"],
                           file.GetInteger(original, 1, INT32_MAX));
  }
  reader->json["rope_scaling"] = std::move(scaling);
  return absl::OkStatus();
}

absl::Status ReadExperts(const std::string& type, ConfigReader* reader) {
  const bool qwen = type == "qwen3_moe";
  CADRE_RETURN_IF_ERROR(
      reader->Integer("expert_count", qwen ? "num_experts" : "num_local_experts", true));
  CADRE_RETURN_IF_ERROR(reader->Integer("expert_used_count", "num_experts_per_tok", true));
  if (!qwen) return absl::OkStatus();
  reader->json["norm_topk_prob"] = true;
  reader->json["decoder_sparse_step"] = 1;
  return reader->Integer("expert_feed_forward_length", "moe_intermediate_size", true);
}

absl::StatusOr<std::string> ModelType(const GgufFile& file, std::string_view arch) {
  bool experts = false;
  const std::string key = std::string(arch) + ".expert_count";
  if (file.Has(key)) {
    CADRE_ASSIGN_OR_RETURN(const int64_t count, file.GetInteger(key, 0, INT32_MAX));
    experts = count > 0;
  }
  for (const Family& family : kFamilies) {
    if (family.gguf != arch) continue;
    const char* type = experts ? family.experts : family.dense;
    if (type != nullptr) return std::string(type);
  }
  return Unimplemented(
      "{}: architecture '{}'{} (allowed: llama, also with experts, qwen2, qwen3 and qwen3moe)",
      file.name(), arch, experts ? " with experts" : "");
}

}  // namespace

absl::StatusOr<HfConfig> GgufConfig(const GgufFile& file) {
  CADRE_ASSIGN_OR_RETURN(const std::string_view arch, file.GetString("general.architecture"));
  CADRE_ASSIGN_OR_RETURN(const std::string type, ModelType(file, arch));
  ConfigReader reader(file, std::string(arch));
  Json& json = reader.json;
  json["model_type"] = type;
  CADRE_RETURN_IF_ERROR(reader.Integer("embedding_length", "hidden_size", true));
  CADRE_RETURN_IF_ERROR(reader.Integer("block_count", "num_hidden_layers", true));
  CADRE_RETURN_IF_ERROR(reader.Integer("context_length", "max_position_embeddings", true));
  CADRE_RETURN_IF_ERROR(reader.Integer("attention.head_count", "num_attention_heads", true));
  json["num_key_value_heads"] = json["num_attention_heads"];
  CADRE_RETURN_IF_ERROR(reader.Integer("attention.head_count_kv", "num_key_value_heads", false));
  CADRE_RETURN_IF_ERROR(
      reader.Integer("feed_forward_length", "intermediate_size", type != "qwen3_moe"));
  CADRE_RETURN_IF_ERROR(reader.Number("attention.layer_norm_rms_epsilon", "rms_norm_eps", true));
  json["head_dim"] =
      json["hidden_size"].get<int64_t>() / json["num_attention_heads"].get<int64_t>();
  CADRE_RETURN_IF_ERROR(reader.Integer("attention.key_length", "head_dim", false));
  if (reader.Has("attention.sliding_window")) {
    return Unimplemented("{}: {}: sliding windows of a GGUF file are not read", file.name(),
                         reader.Key("attention.sliding_window"));
  }
  CADRE_RETURN_IF_ERROR(ReadRope(file, json["head_dim"].get<int64_t>(), &reader));
  if (type == "mixtral" || type == "qwen3_moe") {
    CADRE_RETURN_IF_ERROR(ReadExperts(type, &reader));
  }
  const GgufTensor* table = file.Find("token_embd.weight");
  if (table == nullptr || table->shape.size() != 2) {
    return NotFound("{}: tensor token_embd.weight [vocabulary, {}] is missing", file.name(),
                    json["hidden_size"].get<int64_t>());
  }
  json["vocab_size"] = table->shape[0];
  json["tie_word_embeddings"] = file.Find("output.weight") == nullptr;
  for (const char* name : {"bos", "eos"}) {
    const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
    if (!file.Has(key)) continue;
    CADRE_ASSIGN_OR_RETURN(json[fmt::format("{}_token_id", name)],
                           file.GetInteger(key, 0, INT32_MAX));
  }
  return ParseHfConfig(json.dump(), file.name());
}

absl::StatusOr<std::vector<int32_t>> LoadGgufEndIds(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
  std::vector<int32_t> ids;
  for (const char* name : {"eos", "eot"}) {
    const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
    if (!file.Has(key)) continue;
    CADRE_ASSIGN_OR_RETURN(const int64_t id, file.GetInteger(key, 0, INT32_MAX));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace cadre
