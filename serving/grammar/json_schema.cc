#include "serving/grammar/json_schema.h"

#include <algorithm>
#include <span>

#include "serving/grammar/json_schema_merge.h"
#include "serving/grammar/json_schema_writer.h"

namespace cadre {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxWork = size_t{1} << 20;

// By the types that a keyword is about; "": any.
struct Keyword {
  std::string_view name, type;
};
constexpr Keyword kSupported[] = {
    {"type", ""},
    {"enum", ""},
    {"const", ""},
    {"$ref", ""},
    {"anyOf", ""},
    {"oneOf", ""},
    {"allOf", ""},
    {"properties", "object"},
    {"required", "object"},
    {"additionalProperties", "object"},
    {"minProperties", "object"},
    {"maxProperties", "object"},
    {"items", "array"},
    {"prefixItems", "array"},
    {"minItems", "array"},
    {"maxItems", "array"},
    {"minLength", "string"},
    {"maxLength", "string"},
    {"pattern", "string"},
    {"format", "string"},
    {"minimum", "number"},
    {"maximum", "number"},
    {"exclusiveMinimum", "number"},
    {"exclusiveMaximum", "number"},
};

// Of all drafts; with a value that asks for nothing they pass.
constexpr std::string_view kRefused[] = {"not",
                                         "if",
                                         "then",
                                         "else",
                                         "dependentRequired",
                                         "dependentSchemas",
                                         "dependencies",
                                         "uniqueItems",
                                         "contains",
                                         "minContains",
                                         "maxContains",
                                         "multipleOf",
                                         "patternProperties",
                                         "propertyNames",
                                         "unevaluatedItems",
                                         "unevaluatedProperties",
                                         "additionalItems",
                                         "$dynamicRef",
                                         "$recursiveRef"};

bool AsksForNothing(const Json& value) {
  return value.is_null() || value == Json(false) || (value.is_object() && value.empty());
}

Json Except(const Json& schema, const char* keyword) {
  Json rest = Json::object();
  for (const auto& [name, value] : schema.items()) {
    if (name != keyword && !IsAnnotation(name)) rest[name] = value;
  }
  return rest;
}

}  // namespace

absl::Status JsonSchemaWriter::Error(const Place& place, const std::string& message) const {
  return InvalidArgument("{}: {}", place.pointer, message);
}

absl::Status JsonSchemaWriter::Spend(size_t work, const Place& place) {
  work_ += work;
  if (work_ <= kMaxWork) return absl::OkStatus();
  return Error(place, "the schema is too large once its parts are merged");
}

absl::Status JsonSchemaWriter::CheckKeywords(const Json& schema, const Place& place) const {
  for (std::string_view name : kRefused) {
    auto found = schema.find(std::string(name));
    if (found == schema.end()) continue;
    // "unevaluated" ones are about what no keyword names: false is what the grammar does anyway.
    // What all values are allowed to be is much to forbid, and to ask of an item.
    const bool nothing = name == "not"        ? *found == Json(false)
                         : name == "contains" ? false
                                              : AsksForNothing(*found);
    if (nothing) continue;
    return Error(place, fmt::format("'{}' is not supported", name));
  }
  return absl::OkStatus();
}

absl::StatusOr<NodeId> JsonSchemaWriter::Schema(const Json& schema, const Place& place) {
  if (place.depth > limits_.max_nesting) {
    return Error(place, fmt::format("schemas are nested deeper than {}", limits_.max_nesting));
  }
  CADRE_RETURN_IF_ERROR(g_.Check(limits_));
  if (schema == Json(true)) return json_.Value();
  if (schema == Json(false)) return g_.Choice({});
  if (!schema.is_object()) return Error(place, "a schema is an object, true or false");
  CADRE_RETURN_IF_ERROR(Spend(schema.size() + 1, place));
  CADRE_RETURN_IF_ERROR(CheckKeywords(schema, place));
  if (schema.contains("$ref")) return Reference(schema, place);
  if (schema.contains("allOf")) return AllOf(schema, place);
  if (schema.contains("anyOf")) return OneOf("anyOf", schema, place);
  if (schema.contains("oneOf")) return OneOf("oneOf", schema, place);
  return Plain(schema, place);
}

absl::StatusOr<NodeId> JsonSchemaWriter::Plain(const Json& schema, const Place& place) {
  if (schema.contains("const") || schema.contains("enum")) return Values(schema, place);
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> types, Types(schema, place));
  if (types.empty()) return json_.Value();
  std::vector<NodeId> choices;
  for (const std::string& type : types) {
    CADRE_ASSIGN_OR_RETURN(NodeId choice, OfType(type, schema, place));
    choices.push_back(choice);
  }
  return g_.Choice(std::move(choices));
}

absl::StatusOr<Json> JsonSchemaWriter::Merge(const Json& a, const Json& b, const Place& place) {
  CADRE_RETURN_IF_ERROR(Spend(CopyWork(a) + CopyWork(b), place));
  if (b == Json(true)) return a;
  if (b == Json(false)) return Json{{"enum", Json::array()}};
  if (!b.is_object()) return Error(place, "a schema is an object, true or false");
  absl::StatusOr<Json> merged = MergeSchemas(a, b);
  if (!merged.ok()) return Error(place, Message(merged.status()));
  return merged;
}

absl::StatusOr<const Json*> JsonSchemaWriter::Resolve(const Json& ref, const Place& place) const {
  if (!ref.is_string() || !ref.get_ref<const std::string&>().starts_with("#")) {
    return Error(place, "'$ref' is supported to places in the same schema (\"#/...\") alone");
  }
  std::string pointer;
  const auto& text = ref.get_ref<const std::string&>();
  for (size_t i = 1; i < text.size(); ++i) {
    unsigned code = 0;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::sscanf(text.substr(i + 1, 2).c_str(), "%2x", &code) == 1) {
      pointer += static_cast<char>(code);
      i += 2;
    } else {
      pointer += text[i];
    }
  }
  try {
    const Json::json_pointer path(pointer);
    if (document_.contains(path)) return &document_.at(path);
  } catch (const Json::exception&) {  // no JSON pointer
  }
  return Error(place, fmt::format("'$ref' to '{}', which is not there", text.substr(0, 200)));
}

absl::StatusOr<NodeId> JsonSchemaWriter::RuleOf(const Json& ref, const Place& place) {
  CADRE_RETURN_IF_ERROR(Resolve(ref, place).status());
  const auto [it, fresh] = rules_.try_emplace(ref.get<std::string>(), -1);
  if (fresh) {
    it->second = g_.AddRule(it->first);
    pending_.push_back(it->first);
  }
  return g_.Rule(it->second);
}

absl::StatusOr<NodeId> JsonSchemaWriter::Reference(const Json& schema, const Place& place) {
  const Json rest = Except(schema, "$ref");
  if (rest.empty()) return RuleOf(schema["$ref"], place);
  CADRE_ASSIGN_OR_RETURN(const Json* target, Resolve(schema["$ref"], place));
  CADRE_ASSIGN_OR_RETURN(Json merged, Merge(rest, *target, place));
  return Schema(merged, place.Below("$ref"));
}

absl::StatusOr<NodeId> JsonSchemaWriter::AllOf(const Json& schema, const Place& place) {
  if (!schema["allOf"].is_array() || schema["allOf"].empty()) {
    return Error(place, "'allOf' must be a list of schemas");
  }
  Json merged = Except(schema, "allOf");
  for (const Json& part : schema["allOf"]) {
    // What a reference leads to is merged in its place, one step here, further ones below.
    const Json* whole = &part;
    Json spread;
    if (part.is_object() && part.contains("$ref")) {
      CADRE_ASSIGN_OR_RETURN(const Json* target, Resolve(part["$ref"], place));
      CADRE_ASSIGN_OR_RETURN(spread, Merge(Except(part, "$ref"), *target, place));
      whole = &spread;
    }
    CADRE_ASSIGN_OR_RETURN(merged, Merge(merged, *whole, place.Below("allOf")));
  }
  return Schema(merged, place.Below("allOf"));
}

absl::StatusOr<NodeId> JsonSchemaWriter::OneOf(const char* keyword, const Json& schema,
                                               const Place& place) {
  const Json& options = schema[keyword];
  if (!options.is_array() || options.empty()) {
    return Error(place, fmt::format("'{}' must be a list of schemas", keyword));
  }
  const Json rest = Except(schema, keyword);
  std::vector<NodeId> choices;
  for (size_t i = 0; i < options.size(); ++i) {
    const Place inner = place.Below(fmt::format("{}/{}", keyword, i));
    if (rest.empty()) {
      CADRE_ASSIGN_OR_RETURN(NodeId choice, Schema(options[i], inner));
      choices.push_back(choice);
      continue;
    }
    CADRE_ASSIGN_OR_RETURN(Json merged, Merge(rest, options[i], inner));
    CADRE_ASSIGN_OR_RETURN(NodeId choice, Schema(merged, inner));
    choices.push_back(choice);
  }
  return g_.Choice(std::move(choices));
}

absl::StatusOr<NodeId> JsonSchemaWriter::Values(const Json& schema, const Place& place) {
  auto constant = schema.find("const");
  if (constant == schema.end() && !schema["enum"].is_array()) {
    return Error(place, "'enum' must be a list");
  }
  const std::span<const Json> values = constant != schema.end()
                                           ? std::span<const Json>(&*constant, 1)
                                           : schema["enum"].get_ref<const Json::array_t&>();
  for (const Keyword& keyword : kSupported) {
    if (keyword.type.empty() || !schema.contains(std::string(keyword.name))) continue;
    return Error(place,
                 fmt::format("'{}' beside 'enum' or 'const' is not supported", keyword.name));
  }
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> types, Types(schema, place));
  auto fits = [&](const Json& value) {
    const bool listed = !schema.contains("enum") || !schema.contains("const") ||
                        std::ranges::find(schema["enum"], value) != schema["enum"].end();
    const std::string type = value.type_name();  // "number" for integers too
    return listed && (types.empty() || std::ranges::any_of(types, [&](const std::string& one) {
                        return one == type || (one == "integer" && value.is_number_integer());
                      }));
  };
  std::vector<NodeId> choices;
  for (const Json& value : values) {
    CADRE_RETURN_IF_ERROR(Spend(CopyWork(value), place));
    if (!fits(value)) continue;
    CADRE_ASSIGN_OR_RETURN(NodeId choice, json_.Literal(value, limits_));
    choices.push_back(choice);
  }
  return g_.Choice(std::move(choices));
}

absl::StatusOr<std::vector<std::string>> JsonSchemaWriter::Types(const Json& schema,
                                                                 const Place& place) const {
  static constexpr std::string_view kTypes[] = {"string", "number",  "integer", "object",
                                                "array",  "boolean", "null"};
  std::vector<std::string> types;
  if (auto type = schema.find("type"); type != schema.end()) {
    const Json list = type->is_array() ? *type : Json::array({*type});
    for (const Json& one : list) {
      const bool known =
          one.is_string() && std::ranges::find(kTypes, one.get<std::string>()) != std::end(kTypes);
      if (!known) {
        return Error(place,
                     "'type' must be string, number, integer, object, array, boolean or null, or "
                     "a list of them");
      }
      types.push_back(one.get<std::string>());
    }
    // An empty intersection of types leaves nothing; "" is the type of nothing.
    if (types.empty()) types.push_back("");
    return types;
  }
  // Without a type the keywords say which one is meant.
  for (const Keyword& keyword : kSupported) {
    const std::string type(keyword.type);
    if (type.empty() || !schema.contains(std::string(keyword.name))) continue;
    if (std::ranges::find(types, type) == types.end()) types.push_back(type);
  }
  return types;
}

absl::StatusOr<NodeId> JsonSchemaWriter::OfType(const std::string& type, const Json& schema,
                                                const Place& place) {
  if (type == "string") return String(schema, place);
  if (type == "number" || type == "integer") return Number(schema, place, type == "integer");
  if (type == "array") return Array(schema, place);
  if (type == "object") return Object(schema, place);
  if (type == "boolean") return g_.Choice({g_.Bytes("true"), g_.Bytes("false")});
  if (type == "null") return g_.Bytes("null");
  return g_.Choice({});
}

absl::StatusOr<Grammar> JsonSchemaWriter::Write() {
  g_.root = g_.AddRule("root");
  CADRE_ASSIGN_OR_RETURN(NodeId body, Schema(document_, {}));
  g_.rules[g_.root].body = body;
  while (!pending_.empty()) {
    const std::string ref = std::move(pending_.back());
    pending_.pop_back();
    const Place place{.pointer = ref.substr(0, Place::kShown)};
    CADRE_ASSIGN_OR_RETURN(const Json* target, Resolve(Json(ref), place));
    CADRE_ASSIGN_OR_RETURN(NodeId rule_body, Schema(*target, place));
    g_.rules[rules_.at(ref)].body = rule_body;
  }
  CADRE_RETURN_IF_ERROR(g_.Check(limits_));
  return std::move(g_);
}

absl::StatusOr<Grammar> ParseJsonSchema(const Json& schema, const GrammarLimits& limits) {
  return JsonSchemaWriter(schema, limits).Write();
}

}  // namespace cadre
