// JsonSchemaWriter: what each type's keywords mean.
#include <algorithm>
#include <limits>

#include "serving/grammar/json_format.h"
#include "serving/grammar/json_number.h"
#include "serving/grammar/json_schema_writer.h"
#include "serving/grammar/regex.h"
#include "serving/grammar/text_cursor.h"

namespace cadre {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxKeyLength = 256;  // of names that other keys must differ from
constexpr size_t kMaxRequired = 1024;

// Without a copy, which is as large as the document at each level of it.
const Json& Member(const Json& schema, const char* name, const Json& absent) {
  auto found = schema.find(name);
  return found == schema.end() ? absent : *found;
}

}  // namespace

absl::StatusOr<int64_t> JsonSchemaWriter::Count(const Json& schema, const char* name,
                                                int64_t absent, const Place& place) const {
  auto found = schema.find(name);
  if (found == schema.end()) return absent;
  const bool whole = found->is_number() && *found >= 0 && *found <= 1e15 &&
                     found->get<double>() == std::floor(found->get<double>());
  if (!whole) return Error(place, fmt::format("'{}' must be a whole number, 0 to 10^15", name));
  return static_cast<int64_t>(found->get<double>());
}

absl::StatusOr<NodeId> JsonSchemaWriter::String(const Json& schema, const Place& place) {
  CADRE_ASSIGN_OR_RETURN(const int64_t min, Count(schema, "minLength", 0, place));
  CADRE_ASSIGN_OR_RETURN(const int64_t max, Count(schema, "maxLength", -1, place));
  const bool lengths = min > 0 || max >= 0;
  const bool pattern = schema.contains("pattern"), format = schema.contains("format");
  if (lengths + pattern + format > 1) {
    return Error(place, "more than one of lengths, 'pattern' and 'format' is not supported");
  }
  if (pattern || format) {
    const Json& value = schema[pattern ? "pattern" : "format"];
    if (!value.is_string()) return Error(place, "'pattern' and 'format' must be strings");
    std::string expression = value.get<std::string>();
    if (format) {
      absl::StatusOr<std::string> named = FormatPattern(expression.substr(0, 100));
      if (!named.ok()) return Error(place, Message(named.status()));
      expression = *std::move(named);
    }
    absl::StatusOr<NodeId> inner =
        AddRegex(expression, {.search = true, .json_string = true}, limits_, g_);
    if (!inner.ok()) return Error(place, Message(inner.status()));
    return g_.Sequence({g_.Bytes("\""), *inner, g_.Bytes("\"")});
  }
  if (!lengths) return json_.String();
  if (max >= 0 && max < min) return g_.Choice({});
  return g_.Sequence(
      {g_.Bytes("\""), g_.Repeat(json_.StringCharacter(), min, max), g_.Bytes("\"")});
}

absl::StatusOr<NodeId> JsonSchemaWriter::Number(const Json& schema, const Place& place,
                                                bool integer) {
  NumberBounds bounds;
  bool bounded = false;
  // The narrower one where both kinds of a bound are given.
  for (const char* name : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}) {
    auto found = schema.find(name);
    if (found == schema.end()) continue;
    if (!found->is_number()) return Error(place, fmt::format("'{}' must be a number", name));
    const bool exclusive = std::string_view(name).starts_with("exclusive");
    const bool low = std::string_view(name).ends_with("inimum");
    const char* other = low ? "minimum" : "maximum";
    auto inclusive = schema.find(other);
    if (exclusive && inclusive != schema.end() &&
        (low ? *inclusive > *found : *inclusive < *found)) {
      continue;
    }
    absl::StatusOr<DecimalBound> bound = DecimalBound::Parse(found->dump(), exclusive);
    if (!bound.ok()) return Error(place, Message(bound.status()));
    (low ? bounds.low : bounds.high) = *std::move(bound);
    bounded = true;
  }
  if (!bounded) return integer ? json_.Integer() : json_.Number();
  return integer ? IntegerBetween(g_, bounds) : NumberBetween(g_, bounds);
}

absl::StatusOr<NodeId> JsonSchemaWriter::Array(const Json& schema, const Place& place) {
  CADRE_ASSIGN_OR_RETURN(int64_t min, Count(schema, "minItems", 0, place));
  CADRE_ASSIGN_OR_RETURN(int64_t max, Count(schema, "maxItems", -1, place));
  const Json anything = true, none = Json::array();
  const Json& items = Member(schema, "items", anything);
  const bool old_tuple = items.is_array();  // up to draft 2019-09
  const Json& prefix = old_tuple ? items : Member(schema, "prefixItems", none);
  if (!prefix.is_array()) return Error(place, "'prefixItems' must be a list of schemas");
  const Json& rest = old_tuple ? anything : items;
  const auto first = static_cast<int64_t>(prefix.size());
  // What stands behind a prefix is written only where the schema speaks of it.
  const bool open = first == 0 || (schema.contains("items") && !old_tuple) || min > first;
  if (!open) max = max < 0 ? first : std::min(max, first);
  if (rest == Json(false)) max = max < 0 ? first : std::min(max, first);
  if (max >= 0 && max < min) return g_.Choice({});
  std::vector<NodeId> parts;
  for (int64_t i = 0; i < first && (max < 0 || i < max); ++i) {
    CADRE_ASSIGN_OR_RETURN(NodeId item,
                           Schema(prefix[i], place.Below(fmt::format("prefixItems/{}", i))));
    if (i > 0) parts.push_back(json_.Comma());
    parts.push_back(item);
  }
  if (max >= 0 && max <= first) return json_.Enclosed("[", g_.Sequence(std::move(parts)), "]");
  CADRE_ASSIGN_OR_RETURN(NodeId item, Schema(rest, place.Below("items")));
  if (first == 0) return json_.ArrayOf(item, min, max);
  const NodeId next = g_.Sequence({json_.Comma(), item});
  parts.push_back(g_.Repeat(next, std::max<int64_t>(min - first, 0), max < 0 ? -1 : max - first));
  return json_.Enclosed("[", g_.Sequence(std::move(parts)), "]");
}

absl::StatusOr<std::vector<std::string>> JsonSchemaWriter::Required(const Json& schema,
                                                                    const Place& place) const {
  const Json none = Json::array();
  const Json& names = Member(schema, "required", none);
  if (!names.is_array()) return Error(place, "'required' must be a list of names");
  if (names.size() > kMaxRequired) {
    return Error(
        place, fmt::format("'required' has {} names, allowed are {}", names.size(), kMaxRequired));
  }
  std::vector<std::string> required;
  for (const Json& name : names) {
    if (!name.is_string()) return Error(place, "'required' must be a list of names");
    required.push_back(name.get<std::string>());
  }
  return required;
}

absl::StatusOr<NodeId> JsonSchemaWriter::Object(const Json& schema, const Place& place) {
  const bool described = schema.contains("properties");
  const Json none = Json::object(), anything = true, open = !described;
  const Json& listed = Member(schema, "properties", none);
  if (!listed.is_object()) return Error(place, "'properties' must be an object");
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> required, Required(schema, place));
  const std::set<std::string> needed(required.begin(), required.end());
  std::set<std::string> named;
  std::vector<std::pair<std::string, const Json*>> properties;
  for (const auto& [name, value] : listed.get_ref<const Json::object_t&>()) {
    named.insert(name);
    properties.emplace_back(name, &value);
  }
  for (const std::string& name : required) {
    if (!named.insert(name).second) continue;
    properties.emplace_back(name, &Member(schema, "additionalProperties", anything));
  }
  if (properties.empty()) return Map(schema, place);
  for (const char* name : {"minProperties", "maxProperties"}) {
    if (schema.contains(name)) {
      return Error(place, fmt::format("'{}' beside named properties is not supported", name));
    }
  }
  std::vector<NodeId> members;
  std::vector<bool> optional;
  for (const auto& [name, value] : properties) {
    if (*value == Json(false) && !needed.contains(name)) continue;
    CADRE_ASSIGN_OR_RETURN(NodeId node, Schema(*value, place.Below("properties/" + name)));
    members.push_back(g_.Sequence({json_.Key(name), node}));
    optional.push_back(!needed.contains(name));
  }
  // What stands for names that `properties` does not list.
  const Json& other = Member(schema, "additionalProperties", open);
  const bool repeats = other != Json(false);
  if (repeats) {
    CADRE_ASSIGN_OR_RETURN(NodeId member, OtherMembers(other, named, place));
    members.push_back(member);
    optional.push_back(true);
  }
  return json_.Enclosed("{", g_.Members(json_.Comma(), members, optional, repeats), "}");
}

// An object whose keys are free.
absl::StatusOr<NodeId> JsonSchemaWriter::Map(const Json& schema, const Place& place) {
  CADRE_ASSIGN_OR_RETURN(const int64_t min, Count(schema, "minProperties", 0, place));
  CADRE_ASSIGN_OR_RETURN(const int64_t max, Count(schema, "maxProperties", -1, place));
  const Json open = !schema.contains("properties");
  const Json& other = Member(schema, "additionalProperties", open);
  if (other == Json(true) && min == 0 && max < 0) return json_.Object();
  if (other == Json(false) || max == 0) {
    return min > 0 ? g_.Choice({}) : json_.Enclosed("{", g_.Sequence({}), "}");
  }
  // Keys that repeat count once: nothing here can keep them apart.
  if (min > 1) return Error(place, "'minProperties' over 1 is not supported");
  if (max >= 0 && max < min) return g_.Choice({});
  CADRE_ASSIGN_OR_RETURN(NodeId member, OtherMembers(other, {}, place));
  const NodeId next = g_.Sequence({json_.Comma(), member});
  const NodeId all = g_.Sequence({member, g_.Repeat(next, 0, max < 0 ? -1 : max - 1)});
  return json_.Enclosed("{", min == 0 ? g_.Optional(all) : all, "}");
}

absl::StatusOr<NodeId> JsonSchemaWriter::OtherMembers(const Json& schema,
                                                      const std::set<std::string>& named,
                                                      const Place& place) {
  CADRE_ASSIGN_OR_RETURN(NodeId value, Schema(schema, place.Below("additionalProperties")));
  CADRE_ASSIGN_OR_RETURN(NodeId key, OtherKey(named, place));
  return g_.Sequence({key, json_.Colon(), value});
}

absl::StatusOr<NodeId> JsonSchemaWriter::OtherKey(const std::set<std::string>& named,
                                                  const Place& place) {
  if (named.empty()) return json_.String();
  std::vector<std::vector<uint32_t>> names;
  for (const std::string& name : named) {
    CADRE_ASSIGN_OR_RETURN(TextCursor cursor, TextCursor::Open("property", name, limits_));
    if (name.size() > kMaxKeyLength) {
      return Error(place, fmt::format("'additionalProperties' beside names over {} bytes is not "
                                      "supported",
                                      kMaxKeyLength));
    }
    names.emplace_back();
    while (!cursor.done()) names.back().push_back(cursor.Next());
  }
  CADRE_ASSIGN_OR_RETURN(NodeId key, KeyNotIn(std::move(names), 0));
  return g_.Sequence({g_.Bytes("\""), key, g_.Bytes("\"")});
}

// Text without escapes that is none of `names`, which agree in their first `at` characters; from
// there on.
absl::StatusOr<NodeId> JsonSchemaWriter::KeyNotIn(std::vector<std::vector<uint32_t>> names,
                                                  size_t at) {
  CADRE_RETURN_IF_ERROR(g_.Check(limits_));
  const std::vector<CodepointRange> plain = {{' ', '!'}, {'#', '['}, {']', kMaxCodepoint}};
  std::map<uint32_t, std::vector<std::vector<uint32_t>>> by_next;
  std::vector<NodeId> choices;
  bool is_name = false;
  for (auto& name : names) {
    if (name.size() == at) {
      is_name = true;
    } else {
      const uint32_t next = name[at];
      by_next[next].push_back(std::move(name));
    }
  }
  if (!is_name) choices.push_back(g_.Sequence({}));
  std::vector<CodepointRange> taken;
  for (auto& [c, longer] : by_next) {
    // Characters that need an escape are in no such text.
    if (Without({{c, c}}, plain).empty()) {
      CADRE_ASSIGN_OR_RETURN(NodeId rest, KeyNotIn(std::move(longer), at + 1));
      choices.push_back(g_.Sequence({g_.Bytes(Utf8(c)), rest}));
    }
    taken.push_back({c, c});
  }
  choices.push_back(
      g_.Sequence({g_.Class(Without(plain, taken)), g_.Repeat(g_.Class(plain), 0, -1)}));
  return g_.Choice(std::move(choices));
}

}  // namespace cadre
