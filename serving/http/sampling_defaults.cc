#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "model/gguf_model.h"
#include "model/tokenizer.h"
#include "serving/http/json_fields.h"
#include "serving/http/sampling_defaults.h"

namespace cadre {
namespace {

// An empty object where the file is absent.
absl::StatusOr<Json> ReadJson(const std::string& path) {
  Json object = Json::object();
  std::error_code error;
  uintmax_t size = std::filesystem::file_size(path, error);
  if (error == std::errc::no_such_file_or_directory) return object;
  if (error) return NotFound("{}: {}", path, error.message());
  if (size > (uintmax_t{1} << 24))
    return InvalidArgument("{}: {} bytes, at most 16 MiB", path, size);
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (auto failed = ParseJsonObject(text.str(), &object)) {
    return InvalidArgument("{}: {}", path, failed->message);
  }
  return object;
}

// eos_token_id: an id or a list of ids.
std::vector<int32_t> EndIds(JsonFields* fields) {
  const Json* ends = fields->Get("eos_token_id");
  if (ends && ends->is_array()) return fields->TokenIds("eos_token_id", 1024);
  auto one = fields->Integer("eos_token_id", 0, INT32_MAX);
  return one ? std::vector<int32_t>{static_cast<int32_t>(*one)} : std::vector<int32_t>();
}

}  // namespace

absl::StatusOr<SamplingDefaults> LoadSamplingDefaults(const std::string& model_dir) {
  if (IsGguf(model_dir)) {
    SamplingDefaults defaults;
    CADRE_ASSIGN_OR_RETURN(defaults.eos_token_ids, LoadGgufEndIds(model_dir));
    std::sort(defaults.eos_token_ids.begin(), defaults.eos_token_ids.end());
    return defaults;
  }
  std::string path = model_dir + "/generation_config.json";
  CADRE_ASSIGN_OR_RETURN(Json object, ReadJson(path));
  JsonFields fields(object);
  SamplingDefaults defaults;
  defaults.temperature = static_cast<float>(fields.Number("temperature", 0, 100).value_or(1));
  defaults.top_p = static_cast<float>(fields.Number("top_p", 1e-9, 1).value_or(1));
  defaults.min_p = static_cast<float>(fields.Number("min_p", 0, 1).value_or(0));
  defaults.top_k = static_cast<int>(fields.Integer("top_k", 0, INT32_MAX).value_or(0));
  defaults.repetition_penalty =
      static_cast<float>(fields.Number("repetition_penalty", 0.01, 100).value_or(1));
  defaults.max_new_tokens =
      static_cast<int>(fields.Integer("max_new_tokens", 1, INT32_MAX).value_or(0));
  defaults.eos_token_ids = EndIds(&fields);
  if (fields.error()) return InvalidArgument("{}: {}", path, fields.error()->message);
  if (defaults.eos_token_ids.empty()) {
    path = model_dir + "/config.json";
    CADRE_ASSIGN_OR_RETURN(Json config, ReadJson(path));
    JsonFields config_fields(config);
    defaults.eos_token_ids = EndIds(&config_fields);
    if (config_fields.error())
      return InvalidArgument("{}: {}", path, config_fields.error()->message);
  }
  auto& ends = defaults.eos_token_ids;
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return defaults;
}

std::vector<int32_t> EndTokenIds(const SamplingDefaults& defaults, const Tokenizer* tokenizer) {
  if (!defaults.eos_token_ids.empty() || tokenizer == nullptr) return defaults.eos_token_ids;
  const std::optional<int32_t> end = tokenizer->eos_id();
  return end ? std::vector<int32_t>{*end} : std::vector<int32_t>();
}

}  // namespace cadre
