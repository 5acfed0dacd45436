// The bodies of the endpoints, checked: one parser each, in a file of its own.
//
// A field that is known but not built here is refused by name unless its value asks for nothing
// (tools []); a field that nobody knows is reported back, to be logged once. null counts as
// absent. Pure functions; any thread.
#pragma once

#include <optional>
#include <string_view>

#include "serving/http/api_error.h"
#include "serving/http/api_request.h"
#include "serving/http/sampling_defaults.h"

namespace cadre {

struct SchemaLimits {
  int max_choices = 128;  // n times the number of prompts
  int max_logprobs = 20;
  size_t max_stop_strings = 4;
  size_t max_stop_sequences = 16;  // of /v1/messages
  size_t max_stop_bytes = 1024;
  size_t max_logit_bias = 1024;
};

// What parsers know of the server.
struct SchemaContext {
  const SamplingDefaults& defaults;
  const SchemaLimits& limits;
  int vocab_size = 0;   // token ids are below it
  int max_context = 0;  // tokens of a prompt at most
  bool takes_priority = false;
  int hidden_size = 0;  // values of an embedding
};

using ParseFunction = std::optional<ApiError>(std::string_view body, const SchemaContext& context,
                                              ApiRequest* request);
ParseFunction ParseChatRequest;         // /v1/chat/completions
ParseFunction ParseCompletionRequest;   // /v1/completions
ParseFunction ParseEmbeddingsRequest;   // /v1/embeddings
ParseFunction ParseMessagesRequest;     // /v1/messages
ParseFunction ParseCountTokensRequest;  // /v1/messages/count_tokens
ParseFunction ParseResponsesRequest;    // /v1/responses
ParseFunction ParseTokenizeRequest;     // /tokenize
ParseFunction ParseDetokenizeRequest;   // /detokenize

}  // namespace cadre
