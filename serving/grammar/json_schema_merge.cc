#include "serving/grammar/json_schema_merge.h"

#include <algorithm>
#include <array>
#include <set>

namespace cadre {
namespace {

using Json = nlohmann::ordered_json;

Json AsList(const Json& value) { return value.is_array() ? value : Json::array({value}); }

// Lists may have as many values as a schema's text has room for.
class ValueSet {
 public:
  explicit ValueSet(const Json& list) {
    for (const Json& value : list) Add(value);
  }
  void Add(const Json& value) { values_.insert(value); }
  bool Has(const Json& value) const { return values_.contains(value); }

 private:
  std::set<Json> values_;
};

Json Intersection(const Json& a, const Json& b) {
  Json both = Json::array();
  const ValueSet in_b(b);
  for (const Json& value : a) {
    if (in_b.Has(value)) both.push_back(value);
  }
  return both;
}

// An integer is a number too.
Json TypesInBoth(const Json& a, const Json& b) {
  Json both = Intersection(a, b);
  auto has = [](const Json& list, const char* type) {
    return std::ranges::find(list, Json(type)) != list.end();
  };
  const bool narrowed =
      (has(a, "integer") && has(b, "number")) || (has(b, "integer") && has(a, "number"));
  if (narrowed && !has(both, "number") && !has(both, "integer")) both.push_back("integer");
  return both;
}

absl::Status MergeProperties(const Json& from, Json* into) {
  for (const auto& [name, schema] : from.items()) {
    auto there = into->find(name);
    if (there == into->end()) {
      (*into)[name] = schema;
    } else if (there->is_object() && schema.is_object()) {
      CADRE_ASSIGN_OR_RETURN(Json merged, MergeSchemas(*there, schema));
      *there = std::move(merged);
    } else if (*there != schema) {
      // true accepts what the other one does.
      *there = *there == Json(true) ? schema : schema == Json(true) ? *there : Json(false);
    }
  }
  return absl::OkStatus();
}

bool In(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::ranges::find(names, name) != names.end();
}

absl::Status MergeKeyword(const std::string& name, const Json& value, Json* into) {
  auto there = into->find(name);
  if (there == into->end()) {
    (*into)[name] = value;
    return absl::OkStatus();
  }
  if (*there == value || IsAnnotation(name)) return absl::OkStatus();
  const bool numbers = there->is_number() && value.is_number();
  if (name == "properties" && there->is_object() && value.is_object()) {
    return MergeProperties(value, &*there);
  }
  if (name == "required" && there->is_array() && value.is_array()) {
    ValueSet names(*there);
    for (const Json& one : value) {
      if (names.Has(one)) continue;
      names.Add(one);
      there->push_back(one);
    }
  } else if (name == "type") {
    *there = TypesInBoth(AsList(*there), AsList(value));
  } else if (name == "enum" && there->is_array() && value.is_array()) {
    *there = Intersection(*there, value);
  } else if (In(name, {"items", "additionalProperties"})) {
    if (there->is_object() && value.is_object()) {
      CADRE_ASSIGN_OR_RETURN(Json merged, MergeSchemas(*there, value));
      *there = std::move(merged);
    } else if (*there == Json(true) || value == Json(false)) {
      *there = value;
    } else if (value != Json(true) && *there != Json(false)) {
      return InvalidArgument("two different values of '{}' cannot be merged", name);
    }
  } else if (numbers &&
             In(name, {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})) {
    *there = std::max(*there, value);
  } else if (numbers &&
             In(name, {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})) {
    *there = std::min(*there, value);
  } else {
    return InvalidArgument("two different values of '{}' cannot be merged", name);
  }
  return absl::OkStatus();
}

}  // namespace

bool IsAnnotation(std::string_view keyword) {
  static constexpr std::array<std::string_view, 20> kAnnotations = {
      "title",     "description", "default",     "examples",         "example",
      "$schema",   "$id",         "$comment",    "deprecated",       "readOnly",
      "writeOnly", "$defs",       "definitions", "contentMediaType", "contentEncoding",
      "nullable",  "$anchor",     "id",          "discriminator",    "externalDocs"};
  return std::ranges::find(kAnnotations, keyword) != kAnnotations.end();
}

absl::StatusOr<Json> MergeSchemas(const Json& a, const Json& b) {
  Json merged = a;
  for (const auto& [name, value] : b.items()) {
    CADRE_RETURN_IF_ERROR(MergeKeyword(name, value, &merged));
  }
  return merged;
}

size_t CopyWork(const Json& value) {
  size_t work = 1;
  if (value.is_string()) work += value.get_ref<const std::string&>().size() / 16;
  if (value.is_array()) {
    for (const Json& child : value) work += CopyWork(child);
  }
  if (value.is_object()) {
    for (const auto& [name, child] : value.get_ref<const Json::object_t&>()) {
      work += name.size() / 16 + CopyWork(child);
    }
  }
  return work;
}

}  // namespace cadre
