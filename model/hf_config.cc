#include "model/hf_config.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "model/decoder_spec.h"
#include "model/gguf_model.h"
#include "model/json_message.h"

namespace cadre {
namespace {

using config::ModelConfig;
using Json = nlohmann::json;

constexpr int64_t kMaxBytes = int64_t{16} << 20;
constexpr int kMaxDepth = 64;

// nlohmann builds the tree without recursion but frees deep trees slowly; refuse them while
// parsing.
absl::StatusOr<Json> ParseObject(std::string_view text, const std::string& file) {
  if (static_cast<int64_t>(text.size()) > kMaxBytes) {
    return InvalidArgument("{}: {} bytes (allowed: {})", file, text.size(), kMaxBytes);
  }
  bool deep = false;
  auto watch = [&deep](int depth, Json::parse_event_t, Json&) {
    deep = deep || depth > kMaxDepth;
    return !deep;
  };
  Json json = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (deep) return InvalidArgument("{}: nested deeper than {} levels", file, kMaxDepth);
  if (json.is_discarded() || !json.is_object()) {
    return InvalidArgument("{}: not a JSON object", file);
  }
  return json;
}

void FoldRopeParameters(ModelConfig* model) {
  if (!model->has_rope_parameters()) return;
  const config::RopeScaling& from = model->rope_parameters();
  if (from.has_rope_theta() && !model->has_rope_theta()) model->set_rope_theta(from.rope_theta());
  std::string type = from.has_rope_type() ? from.rope_type() : from.type();
  if (model->has_rope_scaling() || type.empty() || type == "default") return;
  *model->mutable_rope_scaling() = from;
  model->mutable_rope_scaling()->clear_rope_theta();
}

// Programs that would run a ladder model's weights with the standard wiring must not know it by its
// type.
constexpr std::string_view kLadderType = "ladder_", kLadderClass = "Ladder";

void ReadLadderType(ModelConfig* model) {
  if (!model->model_type().starts_with(kLadderType)) return;
  model->mutable_model_type()->erase(0, kLadderType.size());
  if (!model->has_residual()) model->set_residual("ladder");
}

void WriteLadderType(const ModelConfig& model, Json* json) {
  if (model.residual() != "ladder") return;
  (*json)["model_type"] = std::string(kLadderType) + model.model_type();
  for (Json& name : (*json)["architectures"]) {
    const auto text = name.get<std::string>();
    if (!text.starts_with(kLadderClass)) name = std::string(kLadderClass) + text;
  }
}

// Defaults of transformers' config classes that are not what an absent field means here.
void FillAbsent(const Json& json, ModelConfig* model) {
  const std::string& type = model->model_type();
  if (type == "mistral" && !json.contains("sliding_window")) model->set_sliding_window(4096);
  if ((type == "mistral" || type == "mixtral") && !json.contains("num_key_value_heads")) {
    model->set_num_key_value_heads(8);
  }
  if ((type == "qwen3" || type == "qwen3_moe") && !json.contains("head_dim")) {
    model->set_head_dim(128);
  }
  if (type == "gpt_oss" && !json.contains("sliding_window")) model->set_sliding_window(128);
  if (type == "gpt_oss" && !json.contains("head_dim")) model->set_head_dim(64);
  if (type == "qwen2" || type == "qwen3" || type == "qwen2_moe" || type == "qwen3_moe") {
    if (!json.contains("sliding_window") && model->use_sliding_window()) {
      model->set_sliding_window(4096);
    }
    if (!json.contains("max_window_layers")) model->set_max_window_layers(28);
  }
}

absl::Status ReadGeneration(const std::string& text, const std::string& file, ModelConfig* model) {
  CADRE_ASSIGN_OR_RETURN(Json json, ParseObject(text, file));
  ModelConfig ids;
  Json known = Json::object();
  for (const char* key : {"eos_token_id", "bos_token_id", "pad_token_id"}) {
    if (json.contains(key)) known[key] = json[key];
  }
  CADRE_RETURN_IF_ERROR(JsonToMessage(known, file, &ids));
  if (ids.eos_token_id_size() > 0) *model->mutable_eos_token_id() = ids.eos_token_id();
  if (ids.has_bos_token_id()) model->set_bos_token_id(ids.bos_token_id());
  if (ids.has_pad_token_id()) model->set_pad_token_id(ids.pad_token_id());
  return absl::OkStatus();
}

// config.json has a single end of text as a plain number.
void UnwrapSingle(Json* json, const char* key) {
  auto it = json->find(key);
  if (it != json->end() && it->is_array() && it->size() == 1) *it = Json((*it)[0]);
}

}  // namespace

absl::StatusOr<HfConfig> ParseHfConfig(std::string_view text, const std::string& file) {
  CADRE_ASSIGN_OR_RETURN(Json json, ParseObject(text, file));
  HfConfig config;
  CADRE_RETURN_IF_ERROR(JsonToMessage(json, file, &config.model));
  if (!config.model.has_model_type()) return InvalidArgument("{}: model_type: missing", file);
  ReadLadderType(&config.model);
  FoldRopeParameters(&config.model);
  FillAbsent(json, &config.model);
  config.source = std::string(text);
  if (absl::Status status = ValidateModelConfig(config.model); !status.ok()) {
    return Annotate(status, file);
  }
  return config;
}

absl::StatusOr<HfConfig> LoadHfConfig(const std::string& path) {
  if (IsGguf(path)) {
    CADRE_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
    return GgufConfig(file);
  }
  std::error_code error;
  bool folder = !std::filesystem::is_regular_file(path, error);
  std::string file = folder ? path + "/config.json" : path;
  CADRE_ASSIGN_OR_RETURN(std::string text, ReadFile(file, kMaxBytes));
  CADRE_ASSIGN_OR_RETURN(HfConfig config, ParseHfConfig(text, file));
  std::string generation = path + "/generation_config.json";
  if (folder && std::filesystem::exists(generation, error)) {
    CADRE_ASSIGN_OR_RETURN(config.generation, ReadFile(generation, kMaxBytes));
    CADRE_RETURN_IF_ERROR(ReadGeneration(config.generation, generation, &config.model));
    if (absl::Status status = ValidateModelConfig(config.model); !status.ok()) {
      return Annotate(status, generation);
    }
  }
  return config;
}

std::string HfConfigJson(const HfConfig& config, const std::string& torch_dtype) {
  ModelConfig model = config.model;
  model.set_torch_dtype(torch_dtype);
  if (model.has_dtype()) model.set_dtype(torch_dtype);
  model.clear_quantization_config();
  absl::StatusOr<const Architecture*> arch = FindArchitecture(model.model_type());
  if (arch.ok() && model.architectures_size() == 0) {
    model.add_architectures(std::string((*arch)->class_name));
  }
  Json json = Json::parse(config.source, nullptr, false);
  if (!json.is_object()) json = Json::object();
  json.erase("quantization_config");  // what is written is plain floats
  MessageToJson(model, &json);
  UnwrapSingle(&json, "eos_token_id");
  // transformers would assume a value for these where they are absent.
  for (const char* key : {"sliding_window", "rope_scaling", "q_lora_rank"}) {
    if (!json.contains(key)) json[key] = nullptr;
  }
  absl::StatusOr<DecoderSpec> spec = ResolveModelConfig(model);
  if (spec.ok()) {
    const AttentionSpec& attention = spec->layers[0].attention;
    if (!model.has_num_key_value_heads()) json["num_key_value_heads"] = attention.kv_heads;
    if (!json.contains("head_dim") && attention.latent.kv_rank == 0) {
      json["head_dim"] = attention.head_dim;
    }
    json["rms_norm_eps"] = spec->norm_eps;
    json["rope_theta"] = spec->rope.theta;
    json["tie_word_embeddings"] = spec->tied;
    json["max_position_embeddings"] = spec->max_position;
  }
  WriteLadderType(model, &json);
  return json.dump(2) + "\n";
}

std::string GenerationConfigJson(const HfConfig& config) {
  if (!config.generation.empty()) return config.generation;
  Json json = {{"_from_model_config", true}};
  const ModelConfig& m = config.model;
  if (m.has_bos_token_id()) json["bos_token_id"] = m.bos_token_id();
  if (m.has_pad_token_id()) json["pad_token_id"] = m.pad_token_id();
  if (m.eos_token_id_size() == 1) json["eos_token_id"] = m.eos_token_id(0);
  if (m.eos_token_id_size() > 1) {
    json["eos_token_id"] = std::vector<int>(m.eos_token_id().begin(), m.eos_token_id().end());
  }
  return json.dump(2) + "\n";
}

}  // namespace cadre
