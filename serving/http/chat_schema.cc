// /v1/chat/completions
#include <limits>

#include "serving/http/api_schema.h"
#include "serving/http/message_fields.h"
#include "serving/http/request_fields.h"

namespace cadre {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();

void ReadChatLogprobs(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  bool wanted = fields->Bool("logprobs").value_or(false);
  auto top = fields->Integer("top_logprobs", 0, context.limits.max_logprobs);
  if (top.value_or(0) > 0 && !wanted)
    fields->Fail("'top_logprobs' needs 'logprobs': true", "top_logprobs");
  if (wanted) request->sampling.logprobs = static_cast<int>(top.value_or(0));
}

}  // namespace

std::optional<ApiError> ParseChatRequest(std::string_view body, const SchemaContext& context,
                                         ApiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  request->chat = true;
  JsonFields fields(object);
  ReadScheduling(&fields, context, request);
  ReadTruncation(&fields, request);
  ReadStream(&fields, request);
  ReadSampling(&fields, context, request);
  ReadChoices(&fields, context, request);
  request->form = ReadTextForm(&fields);
  request->tools = ReadTools(&fields, &request->chat_input.tools);
  if (request->tools.choice == ToolRequest::Choice::kForced &&
      request->form.kind != TextForm::Kind::kFree) {
    fields.Fail(fmt::format("'tool_choice' asks for a call, '{}' for a text of its own form",
                            request->form.param),
                "tool_choice");
  }
  ReadMessages(&fields, request);
  ReadTemplateFields(&fields, request);
  ReadChatLogprobs(&fields, context, request);
  auto max_tokens = fields.Integer("max_tokens", 1, kMaxInt);
  auto max_completion = fields.Integer("max_completion_tokens", 1, kMaxInt);
  if (max_completion) max_tokens = max_completion;
  if (max_tokens) request->max_tokens = static_cast<int>(*max_tokens);
  ReadPromptLogprobs(&fields, context, request);
  request->echo = fields.Bool("echo").value_or(false);
  request->add_special_tokens = fields.Bool("add_special_tokens");
  RefuseUnbuilt(&fields, *request);
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

}  // namespace cadre
