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
#include "serving/http/response_format.h"
#include "serving/http/tool_request.h"
#include "serving/request.h"

namespace cadre {

// A prompt of /v1/completions: text, or ids.
using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct ApiRequest {
  bool chat = false;                   // chat_input is rendered; else the prompts are taken
  std::string model;                   // empty: not named
  std::string request_id;              // the client's own, [A-Za-z0-9._-]{1,64}; empty: none
  ChatInput chat_input;                // chat
  std::vector<PromptInput> prompts;    // the others
  std::string input_field = "prompt";  // which field the prompts or messages came in
  // Of each prompt the last so many tokens are taken; -1: as many as there is room for; 0: all.
  int truncate_prompt_tokens = 0;
  std::optional<bool> add_special_tokens;  // absent: to prompts, but not to what a template made
  // temperature ... logit_bias, min_tokens, logprobs and the request's own stop_token_ids are
  // final; seed is where has_seed; the rest is for the service to fill.
  SamplingParams sampling;
  bool has_seed = false;
  std::optional<int> max_tokens;
  bool ignore_eos = false;
  int n = 1;
  int priority = 0;
  std::string cache_salt;
  int64_t kv_budget = 0;    // 0: the deployment's
  std::string kv_eviction;  // empty: the deployment's
  // The answer begins with the prompt; a chat's with echo_text, the last message where it is the
  // assistant's.
  bool echo = false;
  std::string echo_text;
  int prompt_logprobs = -1;  // as in SamplingParams, shown in a field of their own
  bool return_token_ids = false;
  bool skip_special_tokens = true;
  std::vector<std::string> stop;
  TextForm form;      // what the text must be of
  ToolRequest tools;  // chat
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;  // in every event of the stream
  // /v1/embeddings: nothing is generated.
  bool embeds = false;
  bool base64 = false;
  int dimensions = 0;              // the first so many; 0: all
  bool return_token_strs = false;  // /tokenize
  std::string repeated;  // /v1/responses: a JSON object of the request's fields that answers repeat
  std::vector<std::string> unknown_fields;
};

}  // namespace cadre
