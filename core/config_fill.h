// A YAML tree into the fields of a message. Private to core/config*.cc.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <string_view>
#include <utility>

#include "core/status.h"
#include "core/yaml_tree.h"

namespace cadre {

// Where a value stands, for errors: "train.yaml:12: optimizer.lr" or "--set optimizer.lr=x".
struct Place {
  const std::string* origin;  // outlives the reading
  bool has_lines = true;
  std::string path;

  Place Field(std::string_view name) const {
    return {origin, has_lines, path.empty() ? std::string(name) : fmt::format("{}.{}", path, name)};
  }
  Place Element(size_t index) const {
    return {origin, has_lines, fmt::format("{}[{}]", path, index)};
  }
  template <typename... Args>
  absl::Status Error(const YamlNode& node, fmt::format_string<Args...> format,
                     Args&&... args) const {
    const std::string where = has_lines ? fmt::format("{}:{}", *origin, node.line) : *origin;
    const std::string what = fmt::format(format, std::forward<Args>(args)...);
    return path.empty() ? InvalidArgument("{}: {}", where, what)
                        : InvalidArgument("{}: {}: {}", where, path, what);
  }
};

absl::Status FillMessage(const YamlNode& node, const Place& place,
                         google::protobuf::Message* message);

// Null clears; a list replaces; a mapping merges.
absl::Status FillField(const YamlNode& node, const Place& place,
                       const google::protobuf::FieldDescriptor* field,
                       google::protobuf::Message* message);

// Sets a singular field, or appends to a repeated one.
absl::Status FillValue(const YamlNode& node, const Place& place,
                       const google::protobuf::FieldDescriptor* field,
                       google::protobuf::Message* message);

// The entry of a map field with this key, made where there is none.
google::protobuf::Message* MapEntry(const std::string& key,
                                    const google::protobuf::FieldDescriptor* field,
                                    google::protobuf::Message* message);

}  // namespace cadre
