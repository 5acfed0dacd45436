// For tests: whether a JSON value is what a schema asks for, read straight from the schema, and
// random schemas. Knows the keywords that serving/grammar/json_schema.h supports.
#pragma once

#include <cmath>
#include <random>
#include <regex>
#include <string>

#include <nlohmann/json.hpp>

#include "serving/grammar/grammar.h"

namespace cadre {

class SchemaOracle {
 public:
  using Json = nlohmann::ordered_json;
  explicit SchemaOracle(const Json& document) : document_(document) {}

  bool Valid(const Json& value) const { return Valid(document_, value); }

 private:
  static size_t Characters(const std::string& text) {
    return static_cast<size_t>(
        std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
  }
  static bool OfType(const std::string& type, const Json& v) {
    if (type == "integer") return v.is_number_integer();
    if (type == "number") return v.is_number();
    return type == v.type_name();
  }

  bool Valid(const Json& s, const Json& v) const {
    if (s.is_boolean()) return s.get<bool>();
    for (const auto& [name, arg] : s.items()) {
      if (!Holds(name, arg, s, v)) return false;
    }
    return true;
  }

  bool Any(const Json& schemas, const Json& v) const {
    return std::ranges::any_of(schemas, [&](const Json& s) { return Valid(s, v); });
  }

  bool Holds(const std::string& name, const Json& arg, const Json& s, const Json& v) const {
    if (name == "type") {
      const Json list = arg.is_array() ? arg : Json::array({arg});
      return std::ranges::any_of(list, [&](const Json& t) { return OfType(t, v); });
    }
    if (name == "enum") return std::ranges::find(arg, v) != arg.end();
    if (name == "const") return v == arg;
    if (name == "$ref") {
      return Valid(document_.at(Json::json_pointer(arg.get<std::string>().substr(1))), v);
    }
    if (name == "anyOf" || name == "oneOf") return Any(arg, v);
    if (name == "allOf") {
      return std::ranges::all_of(arg, [&](const Json& one) { return Valid(one, v); });
    }
    if (v.is_string()) return HoldsForString(name, arg, v.get<std::string>());
    if (v.is_number()) return HoldsForNumber(name, arg, v.get<double>());
    if (v.is_array()) return HoldsForArray(name, arg, s, v);
    return !v.is_object() || HoldsForObject(name, arg, s, v);
  }
  bool HoldsForString(const std::string& name, const Json& arg, const std::string& v) const {
    if (name == "minLength") return Characters(v) >= arg;
    if (name == "maxLength") return Characters(v) <= arg;
    return name != "pattern" || std::regex_search(v, std::regex(arg.get<std::string>()));
  }
  bool HoldsForNumber(const std::string& name, const Json& arg, double v) const {
    if (name == "minimum") return v >= arg.get<double>();
    if (name == "maximum") return v <= arg.get<double>();
    if (name == "exclusiveMinimum") return v > arg.get<double>();
    return name != "exclusiveMaximum" || v < arg.get<double>();
  }
  bool HoldsForArray(const std::string& name, const Json& arg, const Json& s, const Json& v) const {
    if (name == "minItems") return v.size() >= arg;
    if (name == "maxItems") return v.size() <= arg;
    const Json prefix = s.value("prefixItems", Json::array());
    for (size_t i = 0; i < v.size(); ++i) {
      if (name == "prefixItems" && i < prefix.size() && !Valid(prefix[i], v[i])) return false;
      if (name == "items" && i >= prefix.size() && !Valid(arg, v[i])) return false;
    }
    return true;
  }
  bool HoldsForObject(const std::string& name, const Json& arg, const Json& s,
                      const Json& v) const {
    if (name == "maxProperties") return v.size() <= arg;
    if (name == "minProperties") return v.size() >= arg;
    if (name == "required") {
      return std::ranges::all_of(
          arg, [&](const Json& key) { return v.contains(key.get<std::string>()); });
    }
    const Json named = s.value("properties", Json::object());
    for (const auto& [key, member] : v.items()) {
      if (name == "properties" && named.contains(key) && !Valid(named[key], member)) return false;
      if (name == "additionalProperties" && !named.contains(key) && !Valid(arg, member)) {
        return false;
      }
    }
    return true;
  }

  const Json& document_;
};

// Schemas of every supported kind, a few levels deep; most can be satisfied.
class RandomSchema {
 public:
  using Json = nlohmann::ordered_json;
  explicit RandomSchema(uint32_t seed) : random_(seed) {}

  Json Make() {
    Json schema = Schema(3);
    if (schema.is_object()) {
      schema["$defs"] = {
          {"leaf", Schema(0)},
          {"list",
           {{"type", "object"},
            {"properties",
             {{"v", Schema(0)},
              {"next", {{"anyOf", {{{"$ref", "#/$defs/list"}}, {{"type", "null"}}}}}}}},
            {"required", {"v", "next"}}}}};
    }
    return schema;
  }

 private:
  int Below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }

  Json Schema(int depth) {
    switch (Below(depth == 0 ? 7 : 13)) {
      case 0:
        return Strings();
      case 1:
        return Numbers("integer");
      case 2:
        return Numbers("number");
      case 3:
        return {{"enum", {"a\"b", 1, 2.5, nullptr, {{"k", {1, true}}}, "\xc3\xa9\n"}}};
      case 4:
        return {{"const", Below(2) == 0 ? Json("fixed") : Json::array({1, "x"})}};
      case 5:
        return {{"type", {"boolean", "null"}}};
      case 6:
        return {{"type", "string"}, {"pattern", Below(2) == 0 ? "^[a-c]{2,4}(-\\d+)?$" : "x+\""}};
      case 7:
        return Arrays(depth);
      case 8:
        return {{"anyOf", {Schema(depth - 1), Schema(depth - 1)}}};
      case 9:
        return {{"$ref", Below(2) == 0 ? "#/$defs/leaf" : "#/$defs/list"}};
      case 10:
        return {{"type", "object"},
                {"maxProperties", Below(4)},
                {"additionalProperties", Schema(depth - 1)}};
      default:
        return Objects(depth);
    }
  }
  Json Strings() {
    Json schema = {{"type", "string"}};
    if (Below(2) == 0) schema["minLength"] = Below(4);
    if (Below(2) == 0) schema["maxLength"] = 3 + Below(10);
    return schema;
  }
  Json Numbers(const char* type) {
    Json schema = {{"type", type}};
    auto bound = [&]() -> Json {
      if (Below(2) == 0) return Below(200) - 100;
      return (Below(2000) - 1000) / 8.0;
    };
    if (Below(2) == 0) schema[Below(2) == 0 ? "minimum" : "exclusiveMinimum"] = bound();
    if (Below(2) == 0) schema[Below(2) == 0 ? "maximum" : "exclusiveMaximum"] = bound();
    return schema;
  }
  Json Arrays(int depth) {
    Json schema = {{"type", "array"}};
    if (Below(3) != 0) schema["items"] = Schema(depth - 1);
    if (Below(3) == 0) schema["prefixItems"] = {Schema(0), Schema(depth - 1)};
    if (Below(2) == 0) schema["minItems"] = Below(3);
    if (Below(2) == 0) schema["maxItems"] = 2 + Below(3);
    return schema;
  }
  Json Objects(int depth) {
    Json properties = Json::object();
    for (const char* name : {"name", "nam", "a b", "\"q\"", "\xc3\xa9"}) {
      if (Below(2) == 0) properties[name] = Schema(depth - 1);
    }
    Json required = Json::array();
    for (const auto& [name, unused] : properties.items()) {
      if (Below(2) == 0) required.push_back(name);
    }
    if (Below(5) == 0) required.push_back("extra");
    Json schema = {{"type", "object"}, {"properties", properties}, {"required", required}};
    if (Below(3) == 0) schema["additionalProperties"] = Below(2) == 0 ? Json(false) : Schema(0);
    if (Below(6) == 0) {
      schema["allOf"] = {{{"properties", {{"name", {{"type", "string"}}}}}},
                         {{"required", {"name"}}}};
    }
    return schema;
  }

  std::mt19937 random_;
};

}  // namespace cadre
