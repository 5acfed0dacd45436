#include "serving/http/json_fields.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace cadre {
namespace {

constexpr int kMaxNesting = 64;
// Names of an object are searched one after the other while it is read.
constexpr int kMaxNames = 1024;
// Parsed, one of these takes some hundred bytes, whatever it took in the text; numbers take fewer.
constexpr int kMaxTexts = 1 << 18, kMaxValues = 1 << 22;

// What of the text is over the bounds, before any of it is parsed; it need not be JSON.
std::string OverBounds(std::string_view text) {
  std::array<int, kMaxNesting + 1> names = {};  // of the open object or array at each depth
  int depth = 0, texts = 0, values = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if ((c == '"' || c == '[' || c == '{') && ++texts > kMaxTexts) {
      return fmt::format("has more than {} texts, lists and objects", kMaxTexts);
    }
    if (c == '"') {
      in_string = true;
    } else if (c == ',' && ++values > kMaxValues) {
      return fmt::format("has more than {} values", kMaxValues);
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxNesting) return fmt::format("is nested more than {} deep", kMaxNesting);
      names[static_cast<size_t>(depth)] = 0;
    } else if (c == ']' || c == '}') {
      depth = std::max(depth - 1, 0);
    } else if (c == ':' && ++names[static_cast<size_t>(depth)] > kMaxNames) {
      return fmt::format("has an object of more than {} names", kMaxNames);
    }
  }
  return "";
}

// Without the library's name of the error: "[json.exception.parse_error.101] parse error at ...".
std::string Said(const Json::exception& error) {
  const std::string_view what = error.what();
  const size_t name_end = what.find("] ");
  return std::string(name_end == what.npos ? what : what.substr(name_end + 2));
}

}  // namespace

std::optional<ApiError> ParseJsonObject(std::string_view text, Json* object) {
  if (const std::string over = OverBounds(text); !over.empty()) {
    return BadRequest("the body " + over, "", "invalid_json");
  }
  try {
    *object = Json::parse(text);
  } catch (const Json::exception& error) {
    return BadRequest(fmt::format("the body is not valid JSON: {}", Said(error)), "",
                      "invalid_json");
  }
  if (!object->is_object()) {
    return BadRequest("the body must be a JSON object", "", "invalid_json");
  }
  return std::nullopt;
}

const Json* JsonFields::Get(const std::string& name) {
  known_.insert(name);
  auto field = object_.find(name);
  return field == object_.end() || field->is_null() ? nullptr : &*field;
}

std::optional<double> JsonFields::Number(const std::string& name, double min, double max) {
  const Json* field = Get(name);
  if (!field) return std::nullopt;
  double value = field->is_number() ? field->get<double>() : std::nan("");
  if (value >= min && value <= max) return value;
  Fail(fmt::format("'{}' must be a number from {} to {}, got {}", name, min, max,
                   field->dump().substr(0, 60)),
       name);
  return std::nullopt;
}

std::optional<int64_t> JsonFields::Integer(const std::string& name, int64_t min, int64_t max) {
  const Json* field = Get(name);
  if (!field) return std::nullopt;
  bool fits = field->is_number_integer() &&
              !(field->is_number_unsigned() &&
                field->get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max()));
  if (fits && field->get<int64_t>() >= min && field->get<int64_t>() <= max) {
    return field->get<int64_t>();
  }
  Fail(fmt::format("'{}' must be an integer from {} to {}, got {}", name, min, max,
                   field->dump().substr(0, 60)),
       name);
  return std::nullopt;
}

std::optional<bool> JsonFields::Bool(const std::string& name) {
  const Json* field = Get(name);
  if (!field) return std::nullopt;
  if (field->is_boolean()) return field->get<bool>();
  Fail(fmt::format("'{}' must be true or false, got {}", name, field->dump().substr(0, 60)), name);
  return std::nullopt;
}

std::optional<std::string> JsonFields::String(const std::string& name) {
  const Json* field = Get(name);
  if (!field) return std::nullopt;
  if (field->is_string()) return field->get<std::string>();
  Fail(fmt::format("'{}' must be a string, got {}", name, field->dump().substr(0, 60)), name);
  return std::nullopt;
}

std::vector<int32_t> JsonFields::TokenIds(const std::string& name, size_t max_count) {
  std::vector<int32_t> ids;
  const Json* field = Get(name);
  if (!field) return ids;
  if (!field->is_array() || field->size() > max_count) {
    Fail(fmt::format("'{}' must be a list of at most {} token ids", name, max_count), name);
    return ids;
  }
  for (const Json& id : *field) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<int32_t>::max()) {
      Fail(fmt::format("'{}' must hold token ids, got {}", name, id.dump().substr(0, 60)), name);
      return {};
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void JsonFields::Fail(std::string message, std::string param, std::string code) {
  if (!error_) error_ = BadRequest(std::move(message), std::move(param), std::move(code));
}

std::vector<std::string> JsonFields::Unknown() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_.items()) {
    if (!known_.contains(name)) names.push_back(name);
  }
  return names;
}

}  // namespace cadre
