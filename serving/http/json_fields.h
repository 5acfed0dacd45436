// Reads the fields of a JSON object with types and bounds, keeping the first error. For .cc files
// of the front.
#pragma once

#include <nlohmann/json.hpp>

#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "serving/http/api_error.h"

namespace cadre {

using Json = nlohmann::ordered_json;  // keeps the order of keys: templates show tools as sent

// 400 for malformed JSON, invalid UTF-8, nesting over 64, more values than any request needs and
// anything but an object.
std::optional<ApiError> ParseJsonObject(std::string_view text, Json* object);

class JsonFields {
 public:
  explicit JsonFields(const Json& object) : object_(object) {}

  // Null when absent or null. Marks the name as known.
  const Json* Get(const std::string& name);
  std::optional<double> Number(const std::string& name, double min, double max);
  std::optional<int64_t> Integer(const std::string& name, int64_t min, int64_t max);
  std::optional<bool> Bool(const std::string& name);
  std::optional<std::string> String(const std::string& name);
  // Ids in [0, 2^31); empty when absent.
  std::vector<int32_t> TokenIds(const std::string& name, size_t max_count);

  void Fail(std::string message, std::string param, std::string code = "invalid_value");
  const std::optional<ApiError>& error() const { return error_; }
  // Whether `name` was asked for.
  bool Known(const std::string& name) const { return known_.contains(name); }
  // The object's names that were never asked for.
  std::vector<std::string> Unknown() const;

 private:
  const Json& object_;
  std::set<std::string> known_;
  std::optional<ApiError> error_;
};

}  // namespace cadre
