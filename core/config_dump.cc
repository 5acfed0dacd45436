#include <google/protobuf/message.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/config.h"
#include "core/config_schema.h"

namespace cadre {
namespace pb = google::protobuf;
namespace {

using Type = pb::FieldDescriptor::CppType;

// Plain where no reader can take it for anything but this string, else in double quotes.
std::string Scalar(const std::string& text) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  const auto inner = [&](char c) {
    return letter(c) || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.' || c == '/';
  };
  // A length above that of every YAML word (null, true, off, inf) makes the rule short.
  const bool plain = text.size() > 5 && (letter(text[0]) || text[0] == '/') &&
                     std::all_of(text.begin(), text.end(), inner);
  if (plain) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      quoted += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string Real(double value) {
  if (std::isnan(value)) return ".nan";
  if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
  return fmt::format("{}", value);
}

class Dumper {
 public:
  // The fields of a message, `indent` spaces in. A part that nobody set is shown by its defaults.
  std::string Fields(const pb::Message& message, size_t indent) {
    std::string text;
    if (open_.size() >= kMaxDepth) return text;
    open_.push_back(message.GetDescriptor());
    for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
      text += Field(message, message.GetDescriptor()->field(i), indent);
    }
    open_.pop_back();
    return text;
  }

 private:
  static constexpr size_t kMaxDepth = 32;

  std::string Field(const pb::Message& message, const pb::FieldDescriptor* field, size_t indent) {
    const pb::Reflection* reflection = message.GetReflection();
    const std::string head = std::string(indent, ' ') + field->name() + ":";
    if (field->is_map()) return Map(message, field, head, indent);
    if (field->is_repeated()) return List(message, field, head, indent);
    const bool present = field->has_presence() ? reflection->HasField(message, field) : true;
    if (field->cpp_type() != Type::CPPTYPE_MESSAGE) {
      if (!present && !field->has_default_value()) return "";
      return head + " " + Value(message, field, -1) + "\n";
    }
    if (!present && Recursive(field)) return "";
    const std::string body = Fields(reflection->GetMessage(message, field), indent + 2);
    if (!body.empty()) return head + "\n" + body;
    return present ? head + " {}\n" : "";
  }

  bool Recursive(const pb::FieldDescriptor* field) const {
    return std::find(open_.begin(), open_.end(), field->message_type()) != open_.end();
  }

  std::string List(const pb::Message& message, const pb::FieldDescriptor* field,
                   const std::string& head, size_t indent) {
    const int size = message.GetReflection()->FieldSize(message, field);
    if (size == 0) return "";
    std::string text = head;
    if (field->cpp_type() != Type::CPPTYPE_MESSAGE) {
      for (int i = 0; i < size; ++i) text += (i == 0 ? " [" : ", ") + Value(message, field, i);
      return text + "]\n";
    }
    text += "\n";
    for (int i = 0; i < size; ++i) {
      std::string body =
          Fields(message.GetReflection()->GetRepeatedMessage(message, field, i), indent + 4);
      if (body.empty()) body = std::string(indent + 4, ' ') + "{}\n";
      body[indent + 2] = '-';
      text += body;
    }
    return text;
  }

  std::string Map(const pb::Message& message, const pb::FieldDescriptor* field,
                  const std::string& head, size_t indent) {
    const pb::FieldDescriptor* key_field = field->message_type()->map_key();
    const pb::FieldDescriptor* value_field = field->message_type()->map_value();
    std::vector<std::string> entries;
    for (int i = 0; i < message.GetReflection()->FieldSize(message, field); ++i) {
      const pb::Message& entry = message.GetReflection()->GetRepeatedMessage(message, field, i);
      std::string text = std::string(indent + 2, ' ') + Value(entry, key_field, -1) + ":";
      if (value_field->cpp_type() != Type::CPPTYPE_MESSAGE) {
        text += " " + Value(entry, value_field, -1) + "\n";
      } else {
        const std::string body =
            Fields(entry.GetReflection()->GetMessage(entry, value_field), indent + 4);
        text += body.empty() ? " {}\n" : "\n" + body;
      }
      entries.push_back(std::move(text));
    }
    if (entries.empty()) return "";
    std::sort(entries.begin(), entries.end());
    std::string text = head + "\n";
    for (const std::string& entry : entries) text += entry;
    return text;
  }

  // A scalar; `index` of a list's element, or -1.
  std::string Value(const pb::Message& m, const pb::FieldDescriptor* f, int index) {
    const pb::Reflection& r = *m.GetReflection();
    const bool one = index < 0;
    switch (f->cpp_type()) {
      case Type::CPPTYPE_INT32:
        return fmt::format("{}", one ? r.GetInt32(m, f) : r.GetRepeatedInt32(m, f, index));
      case Type::CPPTYPE_INT64:
        return fmt::format("{}", one ? r.GetInt64(m, f) : r.GetRepeatedInt64(m, f, index));
      case Type::CPPTYPE_UINT32:
        return fmt::format("{}", one ? r.GetUInt32(m, f) : r.GetRepeatedUInt32(m, f, index));
      case Type::CPPTYPE_UINT64:
        return fmt::format("{}", one ? r.GetUInt64(m, f) : r.GetRepeatedUInt64(m, f, index));
      case Type::CPPTYPE_DOUBLE:
        return Real(one ? r.GetDouble(m, f) : r.GetRepeatedDouble(m, f, index));
      case Type::CPPTYPE_FLOAT:
        return fmt::format("{}", one ? r.GetFloat(m, f) : r.GetRepeatedFloat(m, f, index));
      case Type::CPPTYPE_BOOL:
        return (one ? r.GetBool(m, f) : r.GetRepeatedBool(m, f, index)) ? "true" : "false";
      case Type::CPPTYPE_ENUM:
        return ShortName(*(one ? r.GetEnum(m, f) : r.GetRepeatedEnum(m, f, index)));
      case Type::CPPTYPE_STRING:
        return Scalar(one ? r.GetString(m, f) : r.GetRepeatedString(m, f, index));
      case Type::CPPTYPE_MESSAGE:
        break;
    }
    return "null";
  }

  std::vector<const pb::Descriptor*> open_;
};

}  // namespace

std::string DumpYaml(const pb::Message& message) { return Dumper().Fields(message, 0); }

}  // namespace cadre
