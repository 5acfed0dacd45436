// The bodies of /v1/chat/completions and /v1/completions, checked.
//
// A field that is known but not built here is refused by name unless its value asks for nothing
// (frequency_penalty 0, tools []); a field that nobody knows is reported back, to be logged once.
// null counts as absent. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "model/chat_template.h"
#include "serving/http/api_error.h"
#include "serving/http/sampling_defaults.h"
#include "serving/request.h"

namespace cadre {

struct SchemaLimits {
  int max_choices = 128;  // n times the number of prompts
  int max_logprobs = 20;
  int max_stop_strings = 4;
  size_t max_stop_bytes = 1024;
};

// A prompt of /v1/completions: text, or ids.
using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct OpenAiRequest {
  bool chat = false;
  std::string model;                 // empty: not named
  std::string request_id;            // the client's own, [A-Za-z0-9._-]{1,64}; empty: none
  ChatInput chat_input;              // chat
  std::vector<PromptInput> prompts;  // completions
  // temperature ... min_p, min_tokens, logprobs and the request's own stop_token_ids are final;
  // seed is where has_seed; the rest is for the front to fill.
  SamplingParams sampling;
  bool has_seed = false;
  std::optional<int> max_tokens;
  bool ignore_eos = false;
  int n = 1;
  bool echo = false;
  bool skip_special_tokens = true;
  std::vector<std::string> stop;
  bool stream = false;
  bool include_usage = false;
  std::vector<std::string> unknown_fields;
};

std::optional<ApiError> ParseChatRequest(std::string_view body, const SamplingDefaults& defaults,
                                         const SchemaLimits& limits, OpenAiRequest* request);
std::optional<ApiError> ParseCompletionRequest(std::string_view body,
                                               const SamplingDefaults& defaults,
                                               const SchemaLimits& limits, OpenAiRequest* request);

}  // namespace cadre
