#include "core/config_fill.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "core/config_schema.h"

namespace cadre {
namespace pb = google::protobuf;
namespace {

using Type = pb::FieldDescriptor::CppType;

template <typename T>
bool ParseWhole(const std::string& text, T* value) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  if (begin != end && *begin == '+') ++begin;
  const auto [stop, error] = std::from_chars(begin, end, *value);
  return error == std::errc() && stop == end && begin != end;
}

// Integers also as 1e6 or 2.0, as long as the value is whole and exact.
template <typename T>
absl::StatusOr<T> ReadInteger(const YamlNode& node, const Place& place, const Bounds& bounds) {
  const T low = bounds.min ? static_cast<T>(*bounds.min) : std::numeric_limits<T>::min();
  const T high = bounds.max ? static_cast<T>(*bounds.max) : std::numeric_limits<T>::max();
  T value = 0;
  bool whole = !node.quoted && ParseWhole(node.scalar, &value);
  double real = 0;
  if (!whole && !node.quoted && ParseWhole(node.scalar, &real) && real == std::floor(real)) {
    if (std::abs(real) > 9007199254740992.0 || real < static_cast<double>(low) ||
        real > static_cast<double>(high)) {
      return place.Error(node, "{} is out of range; allowed: {} to {}", node.scalar, low, high);
    }
    value = static_cast<T>(real);
    whole = true;
  }
  if (!whole) {
    const bool digits = node.scalar.find_first_not_of("+-0123456789") == std::string::npos;
    if (!node.quoted && digits && node.scalar.find_first_of("0123456789") != std::string::npos) {
      return place.Error(node, "{} is out of range; allowed: {} to {}", node.scalar, low, high);
    }
    return place.Error(node, "{} is no whole number; allowed: {} to {}", Describe(node), low, high);
  }
  if (value < low || value > high) {
    return place.Error(node, "{} is out of range; allowed: {} to {}", value, low, high);
  }
  return value;
}

absl::StatusOr<double> ReadReal(const YamlNode& node, const Place& place, const Bounds& bounds,
                                double largest) {
  double value = 0;
  if (node.quoted || !ParseWhole(node.scalar, &value) || !std::isfinite(value) ||
      std::abs(value) > largest) {
    return place.Error(node, "{} is no finite number; allowed: {}", Describe(node), bounds.Text());
  }
  if (!bounds.Hold(value)) {
    return place.Error(node, "{} is out of range; allowed: {}", node.scalar, bounds.Text());
  }
  return value;
}

absl::StatusOr<bool> ReadBool(const YamlNode& node, const Place& place) {
  const std::string& text = node.scalar;
  if (!node.quoted && (text == "true" || text == "True" || text == "TRUE")) return true;
  if (!node.quoted && (text == "false" || text == "False" || text == "FALSE")) return false;
  return place.Error(node, "{} is no truth value; allowed: true, false", Describe(node));
}

// Sets a singular scalar, or adds to a repeated one.
class ScalarTarget {
 public:
  ScalarTarget(pb::Message* message, const pb::FieldDescriptor* field)
      : message_(message), field_(field), reflection_(message->GetReflection()) {}

  absl::Status Set(const YamlNode& node, const Place& place) {
    if (node.kind != YamlNode::Kind::kScalar) {
      return place.Error(node, "{} where {} is expected", Describe(node), Expected());
    }
    const Bounds bounds = FieldBounds(*field_);
    switch (field_->cpp_type()) {
      case Type::CPPTYPE_INT32:
        return Store(ReadInteger<int32_t>(node, place, bounds), &pb::Reflection::SetInt32,
                     &pb::Reflection::AddInt32);
      case Type::CPPTYPE_INT64:
        return Store(ReadInteger<int64_t>(node, place, bounds), &pb::Reflection::SetInt64,
                     &pb::Reflection::AddInt64);
      case Type::CPPTYPE_UINT32:
        return Store(ReadInteger<uint32_t>(node, place, bounds), &pb::Reflection::SetUInt32,
                     &pb::Reflection::AddUInt32);
      case Type::CPPTYPE_UINT64:
        return Store(ReadInteger<uint64_t>(node, place, bounds), &pb::Reflection::SetUInt64,
                     &pb::Reflection::AddUInt64);
      case Type::CPPTYPE_DOUBLE:
        return Store(ReadReal(node, place, bounds, std::numeric_limits<double>::max()),
                     &pb::Reflection::SetDouble, &pb::Reflection::AddDouble);
      case Type::CPPTYPE_FLOAT:
        return Store(ReadReal(node, place, bounds, std::numeric_limits<float>::max()),
                     &pb::Reflection::SetFloat, &pb::Reflection::AddFloat);
      case Type::CPPTYPE_BOOL:
        return Store(ReadBool(node, place), &pb::Reflection::SetBool, &pb::Reflection::AddBool);
      case Type::CPPTYPE_ENUM:
        return StoreEnum(node, place);
      case Type::CPPTYPE_STRING:
        return Store(absl::StatusOr<std::string>(node.scalar), &pb::Reflection::SetString,
                     &pb::Reflection::AddString);
      case Type::CPPTYPE_MESSAGE:
        break;
    }
    return place.Error(node, "{} where {} is expected", Describe(node), Expected());
  }

 private:
  std::string Expected() const {
    switch (field_->cpp_type()) {
      case Type::CPPTYPE_BOOL:
        return "true or false";
      case Type::CPPTYPE_STRING:
        return "a string";
      case Type::CPPTYPE_ENUM:
        return "one of " + EnumNames(*field_->enum_type());
      case Type::CPPTYPE_MESSAGE:
        return "a mapping of " + field_->message_type()->name();
      default:
        return "a number";
    }
  }

  template <typename Value, typename Setter, typename Adder>
  absl::Status Store(absl::StatusOr<Value> value, Setter set, Adder add) {
    if (!value.ok()) return value.status();
    if (field_->is_repeated()) {
      (reflection_->*add)(message_, field_, *std::move(value));
    } else {
      (reflection_->*set)(message_, field_, *std::move(value));
    }
    return absl::OkStatus();
  }

  absl::Status StoreEnum(const YamlNode& node, const Place& place) {
    const pb::EnumValueDescriptor* value = FindEnumValue(*field_->enum_type(), node.scalar);
    if (value == nullptr) {
      return place.Error(node, "{} is not allowed; allowed: {}", Describe(node),
                         EnumNames(*field_->enum_type()));
    }
    if (field_->is_repeated()) {
      reflection_->AddEnum(message_, field_, value);
    } else {
      reflection_->SetEnum(message_, field_, value);
    }
    return absl::OkStatus();
  }

  pb::Message* message_;
  const pb::FieldDescriptor* field_;
  const pb::Reflection* reflection_;
};

}  // namespace

pb::Message* MapEntry(const std::string& key, const pb::FieldDescriptor* field,
                      pb::Message* message) {
  const pb::FieldDescriptor* key_field = field->message_type()->map_key();
  CADRE_CHECK(key_field->cpp_type() == Type::CPPTYPE_STRING, "{}: keys of configs are strings",
              field->full_name());
  const pb::Reflection* reflection = message->GetReflection();
  for (int i = 0; i < reflection->FieldSize(*message, field); ++i) {
    pb::Message* entry = reflection->MutableRepeatedMessage(message, field, i);
    if (entry->GetReflection()->GetString(*entry, key_field) == key) return entry;
  }
  pb::Message* entry = reflection->AddMessage(message, field);
  entry->GetReflection()->SetString(entry, key_field, key);
  return entry;
}

absl::Status FillValue(const YamlNode& node, const Place& place, const pb::FieldDescriptor* field,
                       pb::Message* message) {
  if (field->cpp_type() != Type::CPPTYPE_MESSAGE)
    return ScalarTarget(message, field).Set(node, place);
  const pb::Reflection* reflection = message->GetReflection();
  return FillMessage(node, place,
                     field->is_repeated() ? reflection->AddMessage(message, field)
                                          : reflection->MutableMessage(message, field));
}

namespace {

absl::Status FillMap(const YamlNode& node, const Place& place, const pb::FieldDescriptor* field,
                     pb::Message* message) {
  if (node.kind != YamlNode::Kind::kMap) {
    return place.Error(node, "{} where a mapping is expected", Describe(node));
  }
  for (size_t i = 0; i < node.items.size(); ++i) {
    CADRE_RETURN_IF_ERROR(FillField(node.items[i], place.Field(node.keys[i]),
                                    field->message_type()->map_value(),
                                    MapEntry(node.keys[i], field, message)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FillField(const YamlNode& node, const Place& place, const pb::FieldDescriptor* field,
                       pb::Message* message) {
  if (node.kind == YamlNode::Kind::kNull) {
    message->GetReflection()->ClearField(message, field);
    return absl::OkStatus();
  }
  if (field->is_map()) return FillMap(node, place, field, message);
  if (!field->is_repeated()) return FillValue(node, place, field, message);
  message->GetReflection()->ClearField(message, field);
  if (node.kind != YamlNode::Kind::kSequence) {
    const bool text = field->cpp_type() == Type::CPPTYPE_STRING;
    if (!text && node.kind == YamlNode::Kind::kScalar &&
        node.scalar.find(',') != std::string::npos) {
      return place.Error(node, "{} is one value; a list is written [{}]", Describe(node),
                         node.scalar);
    }
    return FillValue(node, place, field, message);
  }
  for (size_t i = 0; i < node.items.size(); ++i) {
    CADRE_RETURN_IF_ERROR(FillValue(node.items[i], place.Element(i), field, message));
  }
  return absl::OkStatus();
}

absl::Status FillMessage(const YamlNode& node, const Place& place, pb::Message* message) {
  const pb::Descriptor& type = *message->GetDescriptor();
  if (node.kind == YamlNode::Kind::kNull) return absl::OkStatus();
  if (node.kind != YamlNode::Kind::kMap) {
    return place.Error(node, "{} where a mapping of {} is expected", Describe(node), type.name());
  }
  for (size_t i = 0; i < node.items.size(); ++i) {
    const pb::FieldDescriptor* field = type.FindFieldByName(node.keys[i]);
    const Place inner = place.Field(node.keys[i]);
    if (field == nullptr) {
      return inner.Error(node.items[i], "unknown field; {}", SuggestFields(type, node.keys[i]));
    }
    CADRE_RETURN_IF_ERROR(FillField(node.items[i], inner, field, message));
  }
  return absl::OkStatus();
}

}  // namespace cadre
