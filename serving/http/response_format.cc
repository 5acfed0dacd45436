#include "serving/http/response_format.h"

#include <utility>
#include <vector>

#include "serving/grammar/gbnf.h"
#include "serving/grammar/json_grammar.h"
#include "serving/grammar/json_schema.h"
#include "serving/grammar/regex.h"
#include "serving/http/json_fields.h"

namespace cadre {
namespace {

using Kind = TextForm::Kind;

class FormReader {
 public:
  explicit FormReader(JsonFields* fields) : fields_(fields) {}

  TextForm Read() {
    ResponseFormat();
    Extension("guided_json", "guided_json", Kind::kJsonSchema);
    Extension("guided_regex", "guided_regex", Kind::kRegex);
    Extension("guided_choice", "guided_choice", Kind::kChoice);
    Extension("guided_grammar", "guided_grammar", Kind::kGbnf);
    Extension("grammar", "grammar", Kind::kGbnf);
    Extension("json_schema", "json_schema", Kind::kJsonSchema);
    StructuredOutputs();
    return std::move(form_);
  }

  TextForm ReadFormatOf(const std::string& field) {
    const Json* outer = fields_->Get(field);
    if (outer && !outer->is_object()) {
      fields_->Fail(fmt::format("'{}' must be an object", field), field);
      return {};
    }
    const Json format = outer ? outer->value("format", Json()) : Json();
    const std::string param = field + ".format";
    const Json type = format.is_object() ? format.value("type", Json("")) : format;
    if (type.is_null() || type == "text") return {};
    if (type == "json_object") {
      Ask(Kind::kJsonObject, "", param);
    } else if (type != "json_schema") {
      fields_->Fail(fmt::format("'{}.type' must be text, json_object or json_schema", param),
                    param);
    } else if (!format.contains("schema")) {
      fields_->Fail(fmt::format("'{}.schema' is missing", param), param);
    } else {
      Schema(format["schema"], param);
    }
    return std::move(form_);
  }

 private:
  void Ask(Kind kind, std::string text, const std::string& param) {
    if (form_.kind != Kind::kFree) {
      fields_->Fail(
          fmt::format("'{}' and '{}' both ask for a form of the text; one may", form_.param, param),
          param);
    }
    form_ = {kind, std::move(text), param};
  }

  void ResponseFormat() {
    const Json* format = fields_->Get("response_format");
    if (!format) return;
    const Json type = format->is_object() ? format->value("type", Json()) : Json();
    if (type == "text") return;
    if (type == "json_object") {
      // llama.cpp's clients put a schema here.
      auto schema = format->find("schema");
      if (schema != format->end() && !schema->is_null()) {
        return Schema(*schema, "response_format");
      }
      return Ask(Kind::kJsonObject, "", "response_format");
    }
    if (type != "json_schema") {
      return fields_->Fail("'response_format.type' must be text, json_object or json_schema",
                           "response_format");
    }
    const Json outer = format->value("json_schema", Json());
    const Json* schema = outer.is_object() && outer.contains("schema") ? &outer["schema"] : nullptr;
    if (!schema) {
      return fields_->Fail("'response_format.json_schema.schema' is missing", "response_format");
    }
    Schema(*schema, "response_format");
  }

  // A schema, or its text.
  void Schema(const Json& value, const std::string& param) {
    if (!value.is_string()) return Ask(Kind::kJsonSchema, value.dump(), param);
    Json schema;
    // Only objects; true and false are no use as a text.
    if (auto error = ParseJsonObject(value.get_ref<const std::string&>(), &schema)) {
      return fields_->Fail(fmt::format("'{}': {}", param, error->message), param);
    }
    Ask(Kind::kJsonSchema, schema.dump(), param);
  }

  void Value(const Json& value, const std::string& param, Kind kind) {
    if (kind == Kind::kJsonSchema) return Schema(value, param);
    if (kind == Kind::kChoice) {
      bool strings = value.is_array() && !value.empty();
      for (const Json& one : value) strings = strings && one.is_string() && one != "";
      if (strings) return Ask(kind, value.dump(), param);
      return fields_->Fail(fmt::format("'{}' must be a list of texts", param), param);
    }
    if (value.is_string()) return Ask(kind, value.get<std::string>(), param);
    fields_->Fail(fmt::format("'{}' must be a string", param), param);
  }

  void Extension(const char* name, const std::string& param, Kind kind) {
    const Json* value = fields_->Get(name);
    // llama.cpp's clients send empty ones.
    if (!value || *value == "" || *value == Json::object()) return;
    Value(*value, param, kind);
  }

  void StructuredOutputs() {
    static constexpr std::pair<const char*, Kind> kForms[] = {{"json", Kind::kJsonSchema},
                                                              {"regex", Kind::kRegex},
                                                              {"choice", Kind::kChoice},
                                                              {"grammar", Kind::kGbnf},
                                                              {"json_object", Kind::kJsonObject}};
    const Json* outputs = fields_->Get("structured_outputs");
    if (!outputs) return;
    if (!outputs->is_object()) {
      return fields_->Fail("'structured_outputs' must be an object", "structured_outputs");
    }
    for (const auto& [name, value] : outputs->items()) {
      if (value.is_null() || value == Json(false)) continue;
      const std::string param = "structured_outputs." + name;
      bool known = false;
      for (const auto& [form, kind] : kForms) {
        if (name != form) continue;
        known = true;
        if (kind == Kind::kJsonObject) {
          Ask(kind, "", param);
        } else {
          Value(value, param, kind);
        }
      }
      if (known) continue;
      fields_->Fail(fmt::format("'{}' is not supported by this server", param), param,
                    "unsupported_parameter");
    }
  }

  JsonFields* fields_;
  TextForm form_;
};

Grammar ChoiceGrammar(const Json& texts) {
  Grammar g;
  g.root = g.AddRule("root");
  std::vector<NodeId> choices;
  for (const Json& text : texts) choices.push_back(g.Bytes(text.get_ref<const std::string&>()));
  const NodeId body = g.Choice(std::move(choices));
  g.rules[g.root].body = body;
  return g;
}

}  // namespace

TextForm ReadTextForm(JsonFields* fields) { return FormReader(fields).Read(); }

TextForm ReadFormatOf(JsonFields* fields, const std::string& field) {
  return FormReader(fields).ReadFormatOf(field);
}

absl::StatusOr<Grammar> FormGrammar(const TextForm& form, const GrammarLimits& limits) {
  if (form.text.size() > limits.max_text_bytes) {
    return InvalidArgument("{} bytes, allowed are {}", form.text.size(), limits.max_text_bytes);
  }
  switch (form.kind) {
    case Kind::kJsonObject:
      return JsonObjectGrammar();
    case Kind::kJsonSchema:
      return ParseJsonSchema(Json::parse(form.text), limits);
    case Kind::kRegex:
      return ParseRegex(form.text, limits);
    case Kind::kGbnf:
      return ParseGbnf(form.text, limits);
    case Kind::kChoice:
      return ChoiceGrammar(Json::parse(form.text));
    case Kind::kFree:
      break;
  }
  return Internal("a free text has no grammar");
}

}  // namespace cadre
