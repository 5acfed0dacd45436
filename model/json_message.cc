#include "model/json_message.h"

#include <google/protobuf/message.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace cadre {
namespace {

using google::protobuf::FieldDescriptor;

using google::protobuf::Reflection;
using Json = nlohmann::json;

absl::Status Mismatch(const std::string& where, const Json& value, const char* allowed) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return InvalidArgument("{}: {} (allowed: {})", where, text, allowed);
}

absl::Status SetInt(const Json& value, const std::string& where, const FieldDescriptor* field,
                    google::protobuf::Message* message) {
  // Files of other programs write 1.0 or 40.0 for whole numbers.
  double number = value.is_number() ? value.get<double>() : 0.5;
  if (number != static_cast<double>(static_cast<int64_t>(std::clamp(number, -1e15, 1e15))) ||
      number < INT32_MIN || number > INT32_MAX) {
    return Mismatch(where, value, "a whole number of at most 2^31 - 1");
  }
  const Reflection* reflection = message->GetReflection();
  int32_t whole = static_cast<int32_t>(number);
  field->is_repeated() ? reflection->AddInt32(message, field, whole)
                       : reflection->SetInt32(message, field, whole);
  return absl::OkStatus();
}

absl::Status SetValue(const Json& value, const std::string& where, const FieldDescriptor* field,
                      google::protobuf::Message* message) {
  const Reflection* reflection = message->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return SetInt(value, where, field, message);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      if (!value.is_number()) return Mismatch(where, value, "a number");
      reflection->SetDouble(message, field, value.get<double>());
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_BOOL:
      if (!value.is_boolean()) return Mismatch(where, value, "true, false");
      reflection->SetBool(message, field, value.get<bool>());
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_STRING:
      if (!value.is_string()) return Mismatch(where, value, "a string");
      field->is_repeated() ? reflection->AddString(message, field, value.get<std::string>())
                           : reflection->SetString(message, field, value.get<std::string>());
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      if (!value.is_object()) return Mismatch(where, value, "an object");
      return JsonToMessage(value, where, reflection->MutableMessage(message, field));
    }
    default:
      return Internal("{}: field type without a reader", where);
  }
}

template <typename Get>
Json ListOf(int count, Get&& get) {
  Json list = Json::array();
  for (int i = 0; i < count; ++i) list.push_back(get(i));
  return list;
}

Json PlainToJson(const google::protobuf::Message& m, const FieldDescriptor* field) {
  const Reflection* r = m.GetReflection();
  int count = field->is_repeated() ? r->FieldSize(m, field) : 0;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      if (!field->is_repeated()) return r->GetInt32(m, field);
      return ListOf(count, [&](int i) { return r->GetRepeatedInt32(m, field, i); });
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return r->GetDouble(m, field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return r->GetBool(m, field);
    case FieldDescriptor::CPPTYPE_STRING:
      if (!field->is_repeated()) return r->GetString(m, field);
      return ListOf(count, [&](int i) { return r->GetRepeatedString(m, field, i); });
    default:
      return nullptr;
  }
}

}  // namespace

absl::Status JsonToMessage(const Json& json, const std::string& file,
                           google::protobuf::Message* message) {
  for (const auto& [key, value] : json.items()) {
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(key);
    if (field == nullptr || value.is_null()) continue;
    std::string where = file + ": " + key;
    if (!field->is_repeated() || !value.is_array()) {
      CADRE_RETURN_IF_ERROR(SetValue(value, where, field, message));
      continue;
    }
    for (const Json& element : value) {
      CADRE_RETURN_IF_ERROR(SetValue(element, where, field, message));
    }
  }
  return absl::OkStatus();
}

void MessageToJson(const google::protobuf::Message& message, Json* json) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    Json& value = (*json)[field->name()];
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      value = PlainToJson(message, field);
      continue;
    }
    if (!value.is_object()) value = Json::object();
    MessageToJson(message.GetReflection()->GetMessage(message, field), &value);
  }
}

}  // namespace cadre
