// Pieces of JSON that several endpoints' answers share. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"
#include "serving/http/answer_writer.h"
#include "serving/http/choice_decoder.h"
#include "serving/http/json_fields.h"

namespace cadre {

// A token's own bytes as text; what is no whole character is spelled out ("bytes:\xe2\x82").
std::string TokenText(const Tokenizer& tokenizer, int32_t id);

// JSON has no infinities: -9999 stands for a probability of 0.
double FiniteLogprob(float logprob);

// `logprobs` of a choice, as chat and as completions write it.
Json ChatLogprobs(const Tokenizer& tokenizer, const std::vector<LogprobEntry>& entries);
Json CompletionLogprobs(const Tokenizer& tokenizer, const std::vector<LogprobEntry>& entries);

// vLLM's `prompt_logprobs`: null for the first token, then {"id": {logprob, rank, decoded_token}}
// of each token and of its k most likely rivals.
Json PromptLogprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& tokens,
                    const std::vector<std::vector<TokenLogprob>>& top, int k);

// "stop", "length", or null while it runs.
Json FinishJson(FinishReason reason);

// OpenAI's `usage`.
Json UsageJson(const AnswerUsage& usage);

size_t CountCharacters(std::string_view text);  // of UTF-8

// The text of a document; what is not UTF-8 is replaced.
std::string Dump(const Json& json);
// A server-sent event without a name.
std::string DataEvent(const Json& json);
inline constexpr char kDoneEvent[] = "data: [DONE]\n\n";

// /v1/models, and one of them.
Json ModelJson(const std::string& name, int64_t created, int max_context);
std::string ModelsBody(const std::vector<std::string>& names, int64_t created, int max_context);

}  // namespace cadre
