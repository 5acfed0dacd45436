#include "serving/http/request_fields.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

namespace cadre {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();

// A token id as JSON writes it as a name: digits alone.
std::optional<int32_t> NamedToken(const std::string& name, int vocab_size) {
  int32_t id = 0;
  const char* end = name.data() + name.size();
  auto [last, error] = std::from_chars(name.data(), end, id);
  if (error != std::errc() || last != end || id < 0 || id >= vocab_size) return std::nullopt;
  return id;
}

void ReadLogitBias(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  const Json* given = fields->Get("logit_bias");
  if (!given) return;
  if (!given->is_object() || given->size() > context.limits.max_logit_bias) {
    return fields->Fail(fmt::format("'logit_bias' must be an object of at most {} token ids",
                                    context.limits.max_logit_bias),
                        "logit_bias");
  }
  for (const auto& [name, bias] : given->items()) {
    const std::optional<int32_t> token = NamedToken(name, context.vocab_size);
    if (!token) {
      return fields->Fail(fmt::format("'logit_bias' has '{}', allowed are token ids from 0 to {}",
                                      name.substr(0, 60), context.vocab_size - 1),
                          "logit_bias");
    }
    const double value = bias.is_number() ? bias.get<double>() : std::nan("");
    if (!(value >= -100 && value <= 100)) {
      return fields->Fail(
          fmt::format("'logit_bias' of {} must be a number from -100 to 100, got {}", *token,
                      bias.dump().substr(0, 60)),
          "logit_bias");
    }
    request->sampling.logit_bias.push_back({*token, static_cast<float>(value)});
  }
}

void ReadPenalties(JsonFields* fields, const SamplingDefaults& defaults, SamplingParams* sampling) {
  sampling->frequency_penalty =
      static_cast<float>(fields->Number("frequency_penalty", -2, 2).value_or(0));
  sampling->presence_penalty =
      static_cast<float>(fields->Number("presence_penalty", -2, 2).value_or(0));
  sampling->repetition_penalty =
      static_cast<float>(fields->Number("repetition_penalty", 0.01, 100)
                             .value_or(static_cast<double>(defaults.repetition_penalty)));
}

}  // namespace

void ReadPromptLogprobs(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  const auto top = fields->Integer("prompt_logprobs", 0, context.limits.max_logprobs);
  if (!top) return;
  if (request->stream) {
    return fields->Fail("'prompt_logprobs' is not allowed with 'stream': true", "prompt_logprobs");
  }
  request->prompt_logprobs = static_cast<int>(*top);
}

void ReadTruncation(JsonFields* fields, ApiRequest* request) {
  const auto kept = fields->Integer("truncate_prompt_tokens", -1, kMaxInt);
  if (!kept) return;
  if (*kept == 0) {
    fields->Fail("'truncate_prompt_tokens' must be -1 or at least 1, got 0",
                 "truncate_prompt_tokens");
  }
  request->truncate_prompt_tokens = static_cast<int>(*kept);
}

void RefuseUnbuilt(JsonFields* fields, const ApiRequest& request) {
  struct Unbuilt {
    const char* name;
    Json neutral;  // null: absent only
  };
  const Unbuilt kUnbuilt[] = {{"response_format", {{"type", "text"}}},
                              {"tools", Json::array()},
                              {"tool_choice", "none"},
                              {"functions", Json::array()},
                              {"function_call", "none"},
                              {"suffix", {}},
                              {"best_of", request.n},
                              {"use_beam_search", false},
                              {"length_penalty", 1},
                              {"modalities", Json::array({"text"})},
                              {"audio", {}},
                              {"prediction", {}},
                              {"reasoning_effort", {}},
                              {"logits_processors", {}},
                              {"guided_json", {}},
                              {"guided_regex", {}},
                              {"guided_choice", {}},
                              {"guided_grammar", {}},
                              {"structured_outputs", {}},
                              {"documents", {}},
                              {"chat_template", {}},
                              {"bad_words", {}},
                              {"include_stop_str_in_output", false},
                              {"truncate_prompt_tokens", {}},
                              {"allowed_token_ids", {}},
                              {"spaces_between_special_tokens", true},
                              {"return_tokens_as_token_ids", false},
                              {"typical_p", 1},
                              {"tfs_z", 1},
                              {"top_n_sigma", -1},
                              {"dynatemp_range", 0},
                              {"mirostat", 0},
                              {"dry_multiplier", 0},
                              {"xtc_probability", 0},
                              {"repeat_penalty", 1},  // of the last tokens alone, unlike ours
                              {"n_probs", 0},
                              {"n_predict", -1},
                              {"store", false},
                              {"web_search_options", {}},
                              {"thinking", {{"type", "disabled"}}},
                              {"container", {}},
                              {"mcp_servers", Json::array()},
                              {"context_management", {}},
                              {"previous_response_id", {}},
                              {"conversation", {}},
                              {"background", false},
                              {"include", Json::array()},
                              {"reasoning", Json::object()},
                              {"truncation", "disabled"},
                              {"top_logprobs", 0},
                              {"max_tool_calls", {}}};
  for (const Unbuilt& unbuilt : kUnbuilt) {
    if (fields->Known(unbuilt.name)) continue;
    const Json* value = fields->Get(unbuilt.name);
    if (!value || (!unbuilt.neutral.is_null() && *value == unbuilt.neutral)) continue;
    fields->Fail(fmt::format("'{}' is not supported by this server", unbuilt.name), unbuilt.name,
                 "unsupported_parameter");
  }
  // These name things that have no effect here on purpose, or none without one of those above.
  for (const char* name :
       {"user", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier",
        "prompt_cache_key", "mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length",
        "dry_penalty_last_n", "dry_sequence_breakers", "xtc_threshold", "repeat_last_n",
        "dynatemp_exponent"}) {
    fields->Get(name);
  }
}

void ReadStop(JsonFields* fields, const char* name, size_t most, const SchemaContext& context,
              ApiRequest* request) {
  const Json* stop = fields->Get(name);
  if (!stop) return;
  const size_t count = stop->is_array() ? stop->size() : 1;
  bool valid = count <= most;
  for (size_t i = 0; valid && i < count; ++i) {
    const Json& text = stop->is_array() ? (*stop)[i] : *stop;
    valid = text.is_string() && !text.get_ref<const std::string&>().empty() &&
            text.get_ref<const std::string&>().size() <= context.limits.max_stop_bytes;
    if (valid) request->stop.push_back(text.get<std::string>());
  }
  if (valid) return;
  fields->Fail(fmt::format("'{}' must be a string or up to {} strings, each of 1 to {} bytes", name,
                           most, context.limits.max_stop_bytes),
               name);
}

void ReadSampling(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  const SamplingDefaults& defaults = context.defaults;
  SamplingParams& s = request->sampling;
  s.temperature = static_cast<float>(
      fields->Number("temperature", 0, 100).value_or(static_cast<double>(defaults.temperature)));
  s.top_k = static_cast<int>(fields->Integer("top_k", -1, kMaxInt).value_or(defaults.top_k));
  s.top_k = std::max(s.top_k, 0);  // -1, as vLLM's clients write it, is no limit
  s.top_p = static_cast<float>(
      fields->Number("top_p", 0, 1).value_or(static_cast<double>(defaults.top_p)));
  if (s.top_p <= 0) fields->Fail("'top_p' must be over 0 and at most 1, got 0", "top_p");
  s.min_p = static_cast<float>(
      fields->Number("min_p", 0, 1).value_or(static_cast<double>(defaults.min_p)));
  if (auto seed = fields->Integer("seed", std::numeric_limits<int64_t>::min(),
                                  std::numeric_limits<int64_t>::max())) {
    s.seed = static_cast<uint64_t>(*seed);
    request->has_seed = true;
  }
  s.min_tokens = static_cast<int>(fields->Integer("min_tokens", 0, kMaxInt).value_or(0));
  s.stop_token_ids = fields->TokenIds("stop_token_ids", 1024);
  ReadPenalties(fields, defaults, &s);
  ReadLogitBias(fields, context, request);
  request->ignore_eos = fields->Bool("ignore_eos").value_or(false);
  request->skip_special_tokens = fields->Bool("skip_special_tokens").value_or(true);
}

void ReadChoices(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  request->n = static_cast<int>(fields->Integer("n", 1, context.limits.max_choices).value_or(1));
  ReadStop(fields, "stop", context.limits.max_stop_strings, context, request);
}

void ReadScheduling(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  request->model = fields->String("model").value_or("");
  request->request_id = fields->String("request_id").value_or("");
  auto allowed = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  };
  if (request->request_id.size() > 64 ||
      !std::all_of(request->request_id.begin(), request->request_id.end(), allowed)) {
    fields->Fail("'request_id' must be at most 64 characters of [A-Za-z0-9._-]", "request_id");
  }
  request->priority = static_cast<int>(
      fields->Integer("priority", std::numeric_limits<int>::min(), kMaxInt).value_or(0));
  if (request->priority != 0 && !context.takes_priority) {
    fields->Fail(
        "'priority' must be 0 on this server: it needs scheduling_policy: priority or fair",
        "priority");
  }
  request->cache_salt = fields->String("cache_salt").value_or("");
  if (request->cache_salt.size() > 1024) {
    fields->Fail("'cache_salt' must be at most 1024 bytes", "cache_salt");
  }
  request->kv_budget = fields->Integer("kv_budget", 1, kMaxInt).value_or(0);
  request->kv_eviction = fields->String("kv_eviction").value_or("");
  if (request->kv_eviction.size() > 64) {
    fields->Fail("'kv_eviction' must be a policy's name", "kv_eviction");
  }
}

void ReadStream(JsonFields* fields, ApiRequest* request) {
  request->return_token_ids = fields->Bool("return_token_ids").value_or(false);
  request->stream = fields->Bool("stream").value_or(false);
  const Json* options = fields->Get("stream_options");
  if (!options) return;
  if (!request->stream) {
    return fields->Fail("'stream_options' needs 'stream': true", "stream_options");
  }
  if (!options->is_object()) {
    return fields->Fail("'stream_options' must be an object", "stream_options");
  }
  JsonFields inner(*options);
  request->include_usage = inner.Bool("include_usage").value_or(false);
  request->continuous_usage =
      inner.Bool("continuous_usage_stats").value_or(false) && request->include_usage;
  if (inner.error()) fields->Fail(inner.error()->message, "stream_options");
}

}  // namespace cadre
