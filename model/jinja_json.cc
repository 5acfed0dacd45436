// JSON in and out, and Python's str() of containers.
#include <algorithm>
#include <cmath>

#include <simdjson.h>

#include "model/jinja_value.h"

namespace cadre::jinja {
namespace {

constexpr size_t kMaxJsonDepth = 64;

Value FromDom(const simdjson::dom::element& element) {
  switch (element.type()) {
    case simdjson::dom::element_type::ARRAY: {
      std::vector<Value> items;
      for (simdjson::dom::element item : simdjson::dom::array(element)) {
        items.push_back(FromDom(item));
      }
      return Value::Of(std::move(items));
    }
    case simdjson::dom::element_type::OBJECT: {
      Dict dict;
      for (auto [key, item] : simdjson::dom::object(element)) {
        dict.Set(Text(std::string(key), Origin::kUser), FromDom(item));
      }
      return Value::Of(std::move(dict));
    }
    case simdjson::dom::element_type::STRING:
      return Value::Of(Text(std::string(std::string_view(element)), Origin::kUser));
    case simdjson::dom::element_type::INT64:
      return Value::Of(int64_t(element));
    case simdjson::dom::element_type::UINT64:
      return Value::Of(static_cast<double>(uint64_t(element)));
    case simdjson::dom::element_type::DOUBLE:
      return Value::Of(double(element));
    case simdjson::dom::element_type::BOOL:
      return Value::Of(bool(element));
    case simdjson::dom::element_type::NULL_VALUE:
      break;
  }
  return Value::OfNone();
}

void AppendUnicodeEscape(char32_t c, std::string* out) {
  if (c >= 0x10000) {
    c -= 0x10000;
    *out += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (uint32_t(c) >> 10),
                        0xdc00 + (uint32_t(c) & 0x3ff));
  } else {
    *out += fmt::format("\\u{:04x}", uint32_t(c));
  }
}

void AppendJsonString(std::string_view text, bool ensure_ascii, std::string* out) {
  out->push_back('"');
  for (size_t pos = 0; pos < text.size();) {
    size_t begin = pos;
    char32_t c = NextCodePoint(text, &pos);
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      case '\b':
        *out += "\\b";
        break;
      case '\f':
        *out += "\\f";
        break;
      default:
        if (c < 0x20 || (ensure_ascii && c >= 0x7f)) {
          AppendUnicodeEscape(c, out);
        } else {
          out->append(text.substr(begin, pos - begin));
        }
    }
  }
  out->push_back('"');
}

// Python's repr of a string: single quotes unless it holds some and no double ones.
void AppendReprString(std::string_view text, std::string* out) {
  bool single = text.find('\'') != std::string_view::npos;
  char quote = single && text.find('"') == std::string_view::npos ? '"' : '\'';
  out->push_back(quote);
  for (char c : text) {
    if (c == quote || c == '\\') out->push_back('\\');
    if (c == '\n' || c == '\r' || c == '\t') {
      *out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      *out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out->push_back(c);
    }
  }
  out->push_back(quote);
}

// Writes values as JSON or, without a style, as Python's repr.
class Writer {
 public:
  Writer(const JsonStyle* style, Budget* budget) : style_(style), budget_(budget) {
    if (style) {
      item_separator_ = !style->item_separator.empty() ? style->item_separator
                        : style->indent >= 0           ? ","
                                                       : ", ";
    }
  }

  absl::Status Write(const Value& value, int level) {
    CADRE_RETURN_IF_ERROR(budget_->Steps(1));
    size_t before = out_.size();
    if (auto* list = value.as_list()) {
      CADRE_RETURN_IF_ERROR(WriteList(*list, level));
    } else if (const Dict* dict = value.as_dict()) {
      CADRE_RETURN_IF_ERROR(WriteDict(*dict, level));
    } else {
      CADRE_RETURN_IF_ERROR(WriteScalar(value));
      return budget_->Bytes(static_cast<int64_t>(out_.size() - before));
    }
    return absl::OkStatus();
  }

  std::string Take() { return std::move(out_); }

 private:
  absl::Status WriteScalar(const Value& value) {
    if (const Text* text = value.as_text()) {
      style_ ? AppendJsonString(text->view(), style_->ensure_ascii, &out_)
             : AppendReprString(text->view(), &out_);
    } else if (value.is_none()) {
      out_ += style_ ? "null" : "None";
    } else if (const bool* b = value.as_bool()) {
      out_ += style_ ? (*b ? "true" : "false") : (*b ? "True" : "False");
    } else if (const int64_t* i = value.as_int()) {
      out_ += std::to_string(*i);
    } else if (const double* d = value.as_float()) {
      out_ += FloatRepr(*d);
    } else if (value.is_undefined() && !style_) {
      out_ += "Undefined";
    } else {
      return InvalidArgument("a value of type {} cannot be written as {}", value.TypeName(),
                             style_ ? "JSON" : "text");
    }
    return absl::OkStatus();
  }

  absl::Status WriteList(const std::vector<Value>& items, int level) {
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      CADRE_RETURN_IF_ERROR(NextItem(i == 0, level + 1));
      CADRE_RETURN_IF_ERROR(Write(items[i], level + 1));
    }
    if (!items.empty()) CADRE_RETURN_IF_ERROR(NewLine(level));
    out_ += ']';
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict, int level) {
    std::vector<const std::pair<Text, Value>*> entries;
    for (const auto& entry : dict.items()) entries.push_back(&entry);
    if (style_ && style_->sort_keys) {
      std::sort(entries.begin(), entries.end(),
                [](auto* a, auto* b) { return a->first.view() < b->first.view(); });
    }
    out_ += '{';
    for (size_t i = 0; i < entries.size(); ++i) {
      CADRE_RETURN_IF_ERROR(NextItem(i == 0, level + 1));
      CADRE_RETURN_IF_ERROR(WriteScalar(Value::Of(entries[i]->first)));
      out_ += style_ ? style_->key_separator : ": ";
      CADRE_RETURN_IF_ERROR(Write(entries[i]->second, level + 1));
    }
    if (!entries.empty()) CADRE_RETURN_IF_ERROR(NewLine(level));
    out_ += '}';
    return absl::OkStatus();
  }

  absl::Status NextItem(bool first, int level) {
    if (!first) out_ += item_separator_;
    return NewLine(level);
  }

  absl::Status NewLine(int level) {
    if (!style_ || style_->indent < 0) return absl::OkStatus();
    int64_t spaces = style_->indent * level;
    CADRE_RETURN_IF_ERROR(budget_->Bytes(spaces + 1));
    out_ += '\n';
    out_.append(static_cast<size_t>(spaces), ' ');
    return absl::OkStatus();
  }

  const JsonStyle* style_;
  Budget* budget_;
  std::string item_separator_ = ", ";
  std::string out_;
};

}  // namespace

absl::StatusOr<Value> ParseJson(std::string_view json, std::string_view what) {
  simdjson::dom::parser parser;
  simdjson::dom::element element;
  simdjson::error_code error = parser.allocate(std::max<size_t>(json.size(), 64), kMaxJsonDepth);
  if (!error) error = parser.parse(json.data(), json.size()).get(element);
  if (error) return InvalidArgument("{}: {}", what, simdjson::error_message(error));
  return FromDom(element);
}

absl::StatusOr<Text> ToJson(const Value& value, const JsonStyle& style, Budget* budget) {
  if (style.indent > 64) return InvalidArgument("tojson: indent {}, at most 64", style.indent);
  Writer writer(&style, budget);
  CADRE_RETURN_IF_ERROR(writer.Write(value, 0));
  return Text(writer.Take(), Origin::kUser);
}

absl::StatusOr<Text> ToText(const Value& value, Budget* budget) {
  if (const Text* text = value.as_text()) return *text;
  if (value.is_undefined()) return Text();
  Writer writer(nullptr, budget);
  CADRE_RETURN_IF_ERROR(writer.Write(value, 0));
  return Text(writer.Take(), Origin::kUser);
}

}  // namespace cadre::jinja
