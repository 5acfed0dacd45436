// /tokenize and /detokenize, in vLLM's shapes.
#include <algorithm>

#include "serving/http/answer_json.h"
#include "serving/http/api_schema.h"
#include "serving/http/message_fields.h"
#include "serving/http/request_fields.h"
#include "serving/http/text_answer.h"

namespace cadre {
namespace {

// Tokens that /tokenize lists: some MiB of text, so that documents far over a context can be
// counted. Each takes about 100 bytes while the answer is written with its strings.
constexpr size_t kMaxListed = size_t{1} << 20;

}  // namespace

std::optional<ApiError> ParseTokenizeRequest(std::string_view body, const SchemaContext&,
                                             ApiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  JsonFields fields(object);
  request->model = fields.String("model").value_or("");
  request->chat = fields.Get("messages") != nullptr;
  const auto prompt = fields.String("prompt");
  if (request->chat == prompt.has_value()) {
    fields.Fail("either 'prompt' or 'messages' is needed", "prompt");
  } else if (prompt) {
    request->prompts.emplace_back(*prompt);
  } else {
    ReadMessages(&fields, request);
  }
  ReadTemplateFields(&fields, request);
  ReadTruncation(&fields, request);
  request->add_special_tokens = fields.Bool("add_special_tokens");
  request->return_token_strs = fields.Bool("return_token_strs").value_or(false);
  RefuseUnbuilt(&fields, *request);
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

std::optional<ApiError> ParseDetokenizeRequest(std::string_view body, const SchemaContext& context,
                                               ApiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  JsonFields fields(object);
  request->model = fields.String("model").value_or("");
  request->input_field = "tokens";
  if (!fields.Get("tokens")) {
    fields.Fail("'tokens' is missing", "tokens", "missing_required_parameter");
  }
  const auto most = static_cast<size_t>(context.max_context);
  request->prompts.emplace_back(fields.TokenIds("tokens", most));
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

std::optional<ApiError> TokenizeBody(const TextAnswerInput& input, std::string* body) {
  const std::vector<int32_t>& ids = *input.prompts[0].ids;
  const size_t most = std::max(kMaxListed, static_cast<size_t>(input.max_context));
  if (ids.size() > most) {
    return BadRequest(fmt::format("{} tokens were to be listed, allowed are {}", ids.size(), most),
                      input.request.input_field, "invalid_value");
  }
  Json strings;
  if (input.request.return_token_strs) {
    strings = Json::array();
    for (int32_t id : ids) strings.push_back(std::string(input.tokenizer.TokenString(id)));
  }
  *body = Dump({{"count", ids.size()},
                {"max_model_len", input.max_context},
                {"tokens", ids},
                {"token_strs", std::move(strings)}});
  return std::nullopt;
}

std::optional<ApiError> DetokenizeBody(const TextAnswerInput& input, std::string* body) {
  *body = Dump({{"prompt", input.tokenizer.Decode(*input.prompts[0].ids,
                                                  /*skip_special_tokens=*/false)}});
  return std::nullopt;
}

}  // namespace cadre
