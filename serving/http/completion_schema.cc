// /v1/completions
#include <limits>

#include "serving/http/api_schema.h"
#include "serving/http/request_fields.h"

namespace cadre {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();

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

void ReadPrompts(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  const Json* prompt = fields->Get("prompt");
  if (!prompt) return fields->Fail("'prompt' is missing", "prompt", "missing_required_parameter");
  bool many = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
  Json list = many ? *prompt : Json::array({*prompt});
  if (list.size() * static_cast<size_t>(request->n) >
      static_cast<size_t>(context.limits.max_choices)) {
    return fields->Fail(fmt::format("{} prompts times n = {} are more than {}", list.size(),
                                    request->n, context.limits.max_choices),
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

std::optional<ApiError> ParseCompletionRequest(std::string_view body, const SchemaContext& context,
                                               ApiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  JsonFields fields(object);
  ReadEnvelope(&fields, request);
  ReadSampling(&fields, context, request);
  ReadPrompts(&fields, context, request);
  request->echo = fields.Bool("echo").value_or(false);
  auto logprobs = fields.Integer("logprobs", 0, context.limits.max_logprobs);
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
