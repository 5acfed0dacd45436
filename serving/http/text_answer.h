// Endpoints that the tokenizer and the template answer alone, with no step of the engine. Pure
// functions; any thread.
#pragma once

#include <span>
#include <string>

#include "model/tokenizer.h"
#include "serving/http/answer_writer.h"
#include "serving/http/api_request.h"

namespace cadre {

struct TextAnswerInput {
  const Tokenizer& tokenizer;
  const ApiRequest& request;
  std::span<const AnswerFacts::Prompt> prompts;
  int max_context = 0;
};

// /tokenize: {count, max_model_len, tokens, token_strs}
std::string TokenizeBody(const TextAnswerInput& input);
// /detokenize: {prompt}
std::string DetokenizeBody(const TextAnswerInput& input);
// /v1/messages/count_tokens: {input_tokens}
std::string CountTokensBody(const TextAnswerInput& input);

}  // namespace cadre
