#include "model/tokenizer_json_node.h"

#include <fmt/format.h>

namespace cadre {
namespace {

constexpr size_t kShownBytes = 60;

std::string_view TypeName(simdjson::dom::element value) {
  switch (value.type()) {
    case simdjson::dom::element_type::ARRAY:
      return "an array";
    case simdjson::dom::element_type::OBJECT:
      return "an object";
    case simdjson::dom::element_type::STRING:
      return "a string";
    case simdjson::dom::element_type::BOOL:
      return "a boolean";
    case simdjson::dom::element_type::NULL_VALUE:
      return "null";
    default:
      return "a number";
  }
}

// The value itself where it is short, else what it is.
std::string Shown(simdjson::dom::element value) {
  std::string text = value.is_array() || value.is_object() ? std::string(TypeName(value))
                                                           : simdjson::minify(value);
  if (text.size() > kShownBytes) text = TypeName(value);
  return text;
}

}  // namespace

absl::Status JsonNode::Wrong(std::string_view allowed) const {
  return InvalidArgument("{}: {}; {} is needed", where, Shown(value), allowed);
}

std::optional<JsonNode> JsonNode::Find(std::string_view key) const {
  simdjson::dom::element found;
  if (!value.is_object() || value[key].get(found) != simdjson::SUCCESS || found.is_null()) {
    return std::nullopt;
  }
  const char* separator = where.ends_with(':') ? " " : ".";
  return JsonNode{found, fmt::format("{}{}{}", where, separator, key)};
}

absl::StatusOr<JsonNode> JsonNode::Get(std::string_view key) const {
  if (!value.is_object()) return Wrong("an object");
  std::optional<JsonNode> found = Find(key);
  if (!found) return InvalidArgument("{}: the field \"{}\" is missing", where, key);
  return *std::move(found);
}

JsonNode JsonNode::Item(simdjson::dom::element item, size_t index) const {
  return {item, fmt::format("{}[{}]", where, index)};
}

absl::StatusOr<simdjson::dom::array> JsonNode::Array() const {
  simdjson::dom::array array;
  if (value.get(array) != simdjson::SUCCESS) return Wrong("an array");
  return array;
}

absl::StatusOr<simdjson::dom::object> JsonNode::Object() const {
  simdjson::dom::object object;
  if (value.get(object) != simdjson::SUCCESS) return Wrong("an object");
  return object;
}

absl::StatusOr<std::string_view> JsonNode::String() const {
  std::string_view text;
  if (value.get(text) != simdjson::SUCCESS) return Wrong("a string");
  return text;
}

absl::StatusOr<int64_t> JsonNode::Integer(int64_t low, int64_t high) const {
  int64_t number = 0;
  if (!value.is_int64() || value.get(number) != simdjson::SUCCESS || number < low ||
      number > high) {
    return Wrong(fmt::format("an integer from {} to {}", low, high));
  }
  return number;
}

absl::StatusOr<std::string_view> JsonNode::GetString(std::string_view key) const {
  CADRE_ASSIGN_OR_RETURN(const JsonNode node, Get(key));
  return node.String();
}

absl::StatusOr<std::string_view> JsonNode::GetString(std::string_view key,
                                                     std::string_view absent) const {
  const std::optional<JsonNode> node = Find(key);
  if (!node) return absent;
  return node->String();
}

absl::StatusOr<bool> JsonNode::GetBool(std::string_view key, bool absent) const {
  const std::optional<JsonNode> node = Find(key);
  if (!node) return absent;
  bool flag = false;
  if (node->value.get(flag) != simdjson::SUCCESS) return node->Wrong("true or false");
  return flag;
}

absl::StatusOr<size_t> JsonNode::GetChoice(std::string_view key,
                                           std::initializer_list<std::string_view> allowed,
                                           size_t absent) const {
  const std::optional<JsonNode> node = Find(key);
  if (!node) return absent;
  CADRE_ASSIGN_OR_RETURN(const std::string_view name, node->String());
  size_t index = 0;
  for (const std::string_view choice : allowed) {
    if (name == choice) return index;
    ++index;
  }
  return node->Wrong(fmt::format("one of {}", fmt::join(allowed, ", ")));
}

}  // namespace cadre
