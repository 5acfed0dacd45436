// What core/config.cc and core/config_dump.cc both know of a schema: YAML names of enum values,
// bounds, and how to say what is allowed. Private to them.
#pragma once

#include <google/protobuf/descriptor.h>

#include <optional>
#include <string>
#include <string_view>

namespace cadre {

// SCHEDULE_COSINE of enum Schedule: "cosine".
std::string ShortName(const google::protobuf::EnumValueDescriptor& value);

// By short name; null where there is none.
const google::protobuf::EnumValueDescriptor* FindEnumValue(
    const google::protobuf::EnumDescriptor& type, std::string_view name);

// "cosine, wsd, linear, constant".
std::string EnumNames(const google::protobuf::EnumDescriptor& type);

// "lr; did you mean lr?": up to three names within a few typing errors, else all names.
std::string SuggestFields(const google::protobuf::Descriptor& type, std::string_view name);

struct Bounds {
  std::optional<double> min;
  std::optional<double> max;
  bool Hold(double value) const;
  std::string Text() const;  // "0 to 1", "at least 0"
};
Bounds FieldBounds(const google::protobuf::FieldDescriptor& field);

}  // namespace cadre
