#include "serving/http/request_fields.h"

#include <algorithm>
#include <cctype>
#include <limits>

namespace cadre {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();

}  // namespace

void RefuseUnbuilt(JsonFields* fields, const ApiRequest& request) {
  struct Unbuilt {
    const char* name;
    Json neutral;  // null: absent only
  };
  const Unbuilt kUnbuilt[] = {{"frequency_penalty", 0},
                              {"presence_penalty", 0},
                              {"repetition_penalty", 1},
                              {"logit_bias", Json::object()},
                              {"response_format", {{"type", "text"}}},
                              {"tools", Json::array()},
                              {"tool_choice", "none"},
                              {"functions", Json::array()},
                              {"function_call", "none"},
                              {"prompt_logprobs", {}},
                              {"return_token_ids", false},
                              {"priority", 0},
                              {"cache_salt", {}},
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
                              {"web_search_options", {}}};
  for (const Unbuilt& unbuilt : kUnbuilt) {
    if (fields->Known(unbuilt.name)) continue;
    const Json* value = fields->Get(unbuilt.name);
    if (!value || (!unbuilt.neutral.is_null() && *value == unbuilt.neutral)) continue;
    fields->Fail(fmt::format("'{}' is not supported by this server", unbuilt.name), unbuilt.name,
                 "unsupported_parameter");
  }
  // These name things that have no effect here on purpose.
  for (const char* name : {"user", "metadata", "store", "service_tier", "parallel_tool_calls",
                           "safety_identifier", "prompt_cache_key"}) {
    fields->Get(name);
  }
}

void ReadStop(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  const Json* stop = fields->Get("stop");
  if (!stop) return;
  Json list = stop->is_array() ? *stop : Json::array({*stop});
  bool valid = list.size() <= static_cast<size_t>(context.limits.max_stop_strings);
  for (const Json& text : list) {
    valid = valid && text.is_string() && !text.get_ref<const std::string&>().empty() &&
            text.get_ref<const std::string&>().size() <= context.limits.max_stop_bytes;
    if (valid) request->stop.push_back(text.get<std::string>());
  }
  if (valid) return;
  fields->Fail(fmt::format("'stop' must be a string or up to {} strings, each of 1 to {} bytes",
                           context.limits.max_stop_strings, context.limits.max_stop_bytes),
               "stop");
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
  request->ignore_eos = fields->Bool("ignore_eos").value_or(false);
  request->skip_special_tokens = fields->Bool("skip_special_tokens").value_or(true);
  request->n = static_cast<int>(fields->Integer("n", 1, context.limits.max_choices).value_or(1));
  ReadStop(fields, context, request);
}

void ReadEnvelope(JsonFields* fields, ApiRequest* request) {
  request->model = fields->String("model").value_or("");
  request->request_id = fields->String("request_id").value_or("");
  auto allowed = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  };
  if (request->request_id.size() > 64 ||
      !std::all_of(request->request_id.begin(), request->request_id.end(), allowed)) {
    fields->Fail("'request_id' must be at most 64 characters of [A-Za-z0-9._-]", "request_id");
  }
  request->stream = fields->Bool("stream").value_or(false);
  if (const Json* options = fields->Get("stream_options")) {
    if (!request->stream) {
      fields->Fail("'stream_options' needs 'stream': true", "stream_options");
    } else if (!options->is_object()) {
      fields->Fail("'stream_options' must be an object", "stream_options");
    } else {
      JsonFields inner(*options);
      request->include_usage = inner.Bool("include_usage").value_or(false);
      if (inner.error()) fields->Fail(inner.error()->message, "stream_options");
    }
  }
}

}  // namespace cadre
