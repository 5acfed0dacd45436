// /v1/messages and /v1/messages/count_tokens, as Anthropic's clients write them.
#include <algorithm>
#include <functional>
#include <limits>

#include "serving/http/api_schema.h"
#include "serving/http/message_fields.h"
#include "serving/http/request_fields.h"

namespace cadre {
namespace {

// What the model thought in earlier turns; templates leave it out.
bool IsThought(const Json& block) {
  return block.is_object() && block.value("type", Json()) == "thinking";
}

// The text of a content: a string, or text blocks. Blocks of another type are refused by name.
std::string BlocksText(JsonFields* fields, const Json& content, const std::string& where) {
  if (content.is_array() && std::ranges::any_of(content, IsThought)) {
    Json said = Json::array();
    std::ranges::copy_if(content, std::back_inserter(said), std::not_fn(IsThought));
    return BlocksText(fields, said, where);
  }
  if (std::optional<std::string> text = ContentText(content)) return *text;
  if (content.is_array()) {
    for (size_t i = 0; i < content.size(); ++i) {
      const Json type = content[i].is_object() ? content[i].value("type", Json()) : Json();
      if (!type.is_string() || type == "text") continue;
      const std::string at = fmt::format("{}[{}]", where, i);
      fields->Fail(fmt::format("{}: '{}' blocks are not supported by this server", at,
                               type.get<std::string>().substr(0, 60)),
                   at, "unsupported_parameter");
    }
  }
  fields->Fail(where + " must be a string or a list of {\"type\": \"text\", \"text\": ...} blocks",
               where);
  return "";
}

void ReadConversation(JsonFields* fields, ApiRequest* request) {
  Json list = Json::array();
  if (const Json* system = fields->Get("system")) {
    list.push_back({{"role", "system"}, {"content", BlocksText(fields, *system, "system")}});
  }
  const Json* messages = fields->Get("messages");
  if (!messages || !messages->is_array() || messages->empty()) {
    return fields->Fail("'messages' must be a list of at least one message", "messages");
  }
  for (size_t i = 0; i < messages->size(); ++i) {
    const Json& message = (*messages)[i];
    const std::string where = fmt::format("messages[{}]", i);
    if (!message.is_object()) return fields->Fail(where + " must be an object", where);
    const Json role = message.value("role", Json());
    if (role != "user" && role != "assistant") {
      return fields->Fail(where + ".role must be user or assistant", where + ".role");
    }
    if (!message.contains("content")) {
      return fields->Fail(where + ".content is missing", where + ".content");
    }
    list.push_back(
        {{"role", role}, {"content", BlocksText(fields, message["content"], where + ".content")}});
  }
  // A conversation that ends with the assistant is to be continued there.
  request->chat_input.continue_final_message = list.back()["role"] == "assistant";
  request->chat_input.add_generation_prompt = !request->chat_input.continue_final_message;
  request->chat_input.messages = list.dump();
}

void ReadBasics(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  request->chat = true;
  request->input_field = "messages";
  ReadScheduling(fields, context, request);
  if (request->model.empty()) {
    fields->Fail("'model' is missing", "model", "missing_required_parameter");
  }
  ReadConversation(fields, request);
}

}  // namespace

std::optional<ApiError> ParseMessagesRequest(std::string_view body, const SchemaContext& context,
                                             ApiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  JsonFields fields(object);
  ReadBasics(&fields, context, request);
  if (!fields.Get("max_tokens")) {
    fields.Fail("'max_tokens' is missing", "max_tokens", "missing_required_parameter");
  }
  request->max_tokens = static_cast<int>(
      fields.Integer("max_tokens", 1, std::numeric_limits<int>::max()).value_or(1));
  ReadStop(&fields, "stop_sequences", context.limits.max_stop_sequences, context, request);
  ReadSampling(&fields, context, request);
  request->stream = fields.Bool("stream").value_or(false);
  request->form = ReadFormatOf(&fields, "output_config");
  if (fields.Get("output_format")) {
    fields.Fail("'output_format' is not supported by this server: output_config.format is",
                "output_format", "unsupported_parameter");
  }
  RefuseUnbuilt(&fields, *request);
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

std::optional<ApiError> ParseCountTokensRequest(std::string_view body, const SchemaContext& context,
                                                ApiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  JsonFields fields(object);
  ReadBasics(&fields, context, request);
  RefuseUnbuilt(&fields, *request);
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

}  // namespace cadre
