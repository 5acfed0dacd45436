// /v1/completions
#include <limits>

#include "serving/http/api_schema.h"
#include "serving/http/prompt_fields.h"
#include "serving/http/request_fields.h"

namespace cadre {

std::optional<ApiError> ParseCompletionRequest(std::string_view body, const SchemaContext& context,
                                               ApiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  JsonFields fields(object);
  ReadScheduling(&fields, context, request);
  ReadTruncation(&fields, request);
  ReadStream(&fields, request);
  ReadSampling(&fields, context, request);
  ReadChoices(&fields, context, request);
  request->form = ReadTextForm(&fields);
  ReadPrompts(&fields, context, request);
  request->echo = fields.Bool("echo").value_or(false);
  auto logprobs = fields.Integer("logprobs", 0, context.limits.max_logprobs);
  request->sampling.logprobs = static_cast<int>(logprobs.value_or(-1));
  ReadPromptLogprobs(&fields, context, request);
  // Nothing to sample makes sense only where something of the prompt is asked back.
  const bool scores = request->echo || request->prompt_logprobs >= 0;
  auto max_tokens = fields.Integer("max_tokens", scores ? 0 : 1, std::numeric_limits<int>::max());
  request->max_tokens = static_cast<int>(max_tokens.value_or(16));
  request->add_special_tokens = fields.Bool("add_special_tokens");
  RefuseUnbuilt(&fields, *request);
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

}  // namespace cadre
