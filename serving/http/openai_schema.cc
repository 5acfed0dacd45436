#include "serving/http/openai_schema.h"

#include <algorithm>
#include <limits>

#include "serving/http/json_fields.h"

namespace cadre {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();

// Fields that other servers have and this one does not yet. A value that asks for nothing passes.
void RefuseUnbuilt(JsonFields* fields, const OpenAiRequest& request) {
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

void ReadStop(JsonFields* fields, const SchemaLimits& limits, OpenAiRequest* request) {
  const Json* stop = fields->Get("stop");
  if (!stop) return;
  Json list = stop->is_array() ? *stop : Json::array({*stop});
  bool valid = list.size() <= static_cast<size_t>(limits.max_stop_strings);
  for (const Json& text : list) {
    valid = valid && text.is_string() && !text.get_ref<const std::string&>().empty() &&
            text.get_ref<const std::string&>().size() <= limits.max_stop_bytes;
    if (valid) request->stop.push_back(text.get<std::string>());
  }
  if (valid) return;
  fields->Fail(fmt::format("'stop' must be a string or up to {} strings, each of 1 to {} bytes",
                           limits.max_stop_strings, limits.max_stop_bytes),
               "stop");
}

void ReadSampling(JsonFields* fields, const SamplingDefaults& defaults, const SchemaLimits& limits,
                  OpenAiRequest* request) {
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
  request->n = static_cast<int>(fields->Integer("n", 1, limits.max_choices).value_or(1));
  ReadStop(fields, limits, request);
}

void ReadCommon(JsonFields* fields, const SamplingDefaults& defaults, const SchemaLimits& limits,
                OpenAiRequest* request) {
  request->model = fields->String("model").value_or("");
  request->request_id = fields->String("request_id").value_or("");
  auto allowed = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  };
  if (request->request_id.size() > 64 ||
      !std::all_of(request->request_id.begin(), request->request_id.end(), allowed)) {
    fields->Fail("'request_id' must be at most 64 characters of [A-Za-z0-9._-]", "request_id");
  }
  ReadSampling(fields, defaults, limits, request);
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

// The content's text: a string, or text parts joined by line breaks.
std::optional<std::string> ContentText(const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) return std::nullopt;
  std::string text;
  for (const Json& part : content) {
    if (!part.is_object() || part.value("type", Json()) != "text") return std::nullopt;
    auto piece = part.find("text");
    if (piece == part.end() || !piece->is_string()) return std::nullopt;
    if (&part != &content.front()) text += "\n";
    text += piece->get<std::string>();
  }
  return text;
}

void ReadMessages(JsonFields* fields, OpenAiRequest* request) {
  const Json* messages = fields->Get("messages");
  if (!messages || !messages->is_array() || messages->empty()) {
    return fields->Fail("'messages' must be a list of at least one message", "messages");
  }
  Json normalized = *messages;
  for (size_t i = 0; i < normalized.size(); ++i) {
    Json& message = normalized[i];
    std::string where = fmt::format("messages[{}]", i);
    if (!message.is_object()) return fields->Fail(where + " must be an object", where);
    auto role = message.find("role");
    if (role == message.end() || !role->is_string()) {
      return fields->Fail(where + ".role must be a string", where + ".role");
    }
    static constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant",
                                                  "tool"};
    if (std::find(std::begin(kRoles), std::end(kRoles), role->get<std::string>()) ==
        std::end(kRoles)) {
      return fields->Fail(where + ".role must be system, developer, user, assistant or tool",
                          where + ".role");
    }
    for (const char* call : {"tool_calls", "function_call"}) {
      auto found = message.find(call);
      if (found == message.end() || found->empty()) continue;  // null is empty too
      std::string name = where + "." + call;
      return fields->Fail(name + " is not supported by this server", name, "unsupported_parameter");
    }
    auto content = message.find("content");
    if (content == message.end() || content->is_null()) {
      return fields->Fail(where + ".content is missing", where + ".content");
    }
    std::optional<std::string> text = ContentText(*content);
    if (!text) {
      return fields->Fail(where +
                              ".content must be a string or a list of {\"type\": \"text\", "
                              "\"text\": ...} parts",
                          where + ".content");
    }
    *content = *text;
  }
  request->chat_input.messages = normalized.dump();
}

void ReadChatLogprobs(JsonFields* fields, const SchemaLimits& limits, OpenAiRequest* request) {
  bool wanted = fields->Bool("logprobs").value_or(false);
  auto top = fields->Integer("top_logprobs", 0, limits.max_logprobs);
  if (top && !wanted) fields->Fail("'top_logprobs' needs 'logprobs': true", "top_logprobs");
  if (wanted) request->sampling.logprobs = static_cast<int>(top.value_or(0));
}

std::optional<PromptInput> OnePrompt(const Json& prompt) {
  if (prompt.is_string()) return PromptInput(prompt.get<std::string>());
  if (!prompt.is_array() || prompt.empty()) return std::nullopt;
  std::vector<int32_t> ids;
  for (const Json& id : prompt) {
    if (!id.is_number_integer() || id < 0 || id > kMaxInt) return std::nullopt;
    ids.push_back(id.get<int32_t>());
  }
  return PromptInput(std::move(ids));
}

void ReadPrompts(JsonFields* fields, const SchemaLimits& limits, OpenAiRequest* request) {
  const Json* prompt = fields->Get("prompt");
  if (!prompt) return fields->Fail("'prompt' is missing", "prompt", "missing_required_parameter");
  bool many = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
  Json list = many ? *prompt : Json::array({*prompt});
  if (list.size() * static_cast<size_t>(request->n) > static_cast<size_t>(limits.max_choices)) {
    return fields->Fail(fmt::format("{} prompts times n = {} are more than {}", list.size(),
                                    request->n, limits.max_choices),
                        "prompt");
  }
  for (const Json& one : list) {
    std::optional<PromptInput> input = OnePrompt(one);
    if (!input || one.is_string() != list.front().is_string()) {
      return fields->Fail(
          "'prompt' must be a string, a list of strings, a list of token ids or a list of such "
          "lists",
          "prompt");
    }
    request->prompts.push_back(*std::move(input));
  }
}

}  // namespace

std::optional<ApiError> ParseChatRequest(std::string_view body, const SamplingDefaults& defaults,
                                         const SchemaLimits& limits, OpenAiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  request->chat = true;
  JsonFields fields(object);
  ReadCommon(&fields, defaults, limits, request);
  ReadMessages(&fields, request);
  ReadChatLogprobs(&fields, limits, request);
  auto max_tokens = fields.Integer("max_tokens", 1, kMaxInt);
  auto max_completion = fields.Integer("max_completion_tokens", 1, kMaxInt);
  if (max_completion) max_tokens = max_completion;
  if (max_tokens) request->max_tokens = static_cast<int>(*max_tokens);
  ChatInput& chat = request->chat_input;
  chat.continue_final_message = fields.Bool("continue_final_message").value_or(false);
  chat.add_generation_prompt =
      fields.Bool("add_generation_prompt").value_or(!chat.continue_final_message);
  if (const Json* kwargs = fields.Get("chat_template_kwargs")) {
    if (!kwargs->is_object()) {
      fields.Fail("'chat_template_kwargs' must be an object", "chat_template_kwargs");
    } else if (kwargs->contains("chat_template")) {
      fields.Fail("'chat_template' is not allowed in 'chat_template_kwargs'",
                  "chat_template_kwargs");
    }
    chat.kwargs = kwargs->dump();
  }
  RefuseUnbuilt(&fields, *request);
  if (fields.Bool("echo").value_or(false)) {
    fields.Fail("'echo' is not supported by this server for chat", "echo", "unsupported_parameter");
  }
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

std::optional<ApiError> ParseCompletionRequest(std::string_view body,
                                               const SamplingDefaults& defaults,
                                               const SchemaLimits& limits, OpenAiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  request->chat = false;
  JsonFields fields(object);
  ReadCommon(&fields, defaults, limits, request);
  ReadPrompts(&fields, limits, request);
  request->echo = fields.Bool("echo").value_or(false);
  auto logprobs = fields.Integer("logprobs", 0, limits.max_logprobs);
  request->sampling.logprobs = static_cast<int>(logprobs.value_or(-1));
  // Nothing to sample makes sense only where the prompt itself is asked back.
  auto max_tokens = fields.Integer("max_tokens", request->echo && logprobs ? 0 : 1, kMaxInt);
  request->max_tokens = static_cast<int>(max_tokens.value_or(16));
  if (request->echo && logprobs) request->sampling.prompt_logprobs = request->sampling.logprobs;
  RefuseUnbuilt(&fields, *request);
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

}  // namespace cadre
