// What a generating endpoint reads from a body, checked: the common form of all their requests.
//
// Plain data. A parser (api_schema.h) fills it, the service turns it into sequences.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/chat_template.h"
#include "serving/request.h"

namespace cadre {

// A prompt of /v1/completions: text, or ids.
using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct ApiRequest {
  bool chat = false;                 // chat_input is rendered; else the prompts are taken
  std::string model;                 // empty: not named
  std::string request_id;            // the client's own, [A-Za-z0-9._-]{1,64}; empty: none
  ChatInput chat_input;              // chat
  std::vector<PromptInput> prompts;  // the others
  // temperature ... min_p, min_tokens, logprobs and the request's own stop_token_ids are final;
  // seed is where has_seed; the rest is for the service to fill.
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

}  // namespace cadre
