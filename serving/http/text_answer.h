// Endpoints that the tokenizer and the template answer alone, with no step of the engine. Pure
// functions; any thread.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "model/tokenizer.h"
#include "serving/http/answer_writer.h"
#include "serving/http/api_error.h"
#include "serving/http/api_request.h"

namespace cadre {

struct TextAnswerInput {
  const Tokenizer& tokenizer;
  const ApiRequest& request;
  std::span<const AnswerFacts::Prompt> prompts;
  int max_context = 0;
};

// Fills in the body, unless it would be too long.
using AnswerTextFunction = std::optional<ApiError>(const TextAnswerInput& input, std::string* body);
AnswerTextFunction TokenizeBody;     // /tokenize: {count, max_model_len, tokens, token_strs}
AnswerTextFunction DetokenizeBody;   // /detokenize: {prompt}
AnswerTextFunction CountTokensBody;  // /v1/messages/count_tokens: {input_tokens}

}  // namespace cadre
