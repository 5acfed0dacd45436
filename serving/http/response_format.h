// What a request asks of its text's form: OpenAI's response_format, vLLM's structured_outputs and
// guided_* fields, llama.cpp's grammar and json_schema. Any thread.
#pragma once

#include <string>

#include "serving/grammar/grammar.h"

namespace cadre {

class JsonFields;

struct TextForm {
  enum class Kind { kFree, kJsonObject, kJsonSchema, kRegex, kGbnf, kChoice };
  Kind kind = Kind::kFree;
  std::string text;   // the schema, the expression, the grammar, the JSON list of choices
  std::string param;  // the field that asked for it
};

// Reads all of these fields; more than one that asks for something is an error.
TextForm ReadTextForm(JsonFields* fields);

// The same where `field` has the format in its `format`: {type, schema}. /v1/responses has it in
// `text`, /v1/messages in `output_config`.
TextForm ReadFormatOf(JsonFields* fields, const std::string& field);

// kInvalidArgument says what is wrong or not supported in the text. Not for kFree.
absl::StatusOr<Grammar> FormGrammar(const TextForm& form, const GrammarLimits& limits = {});

}  // namespace cadre
