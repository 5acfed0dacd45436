// /v1/responses, stateless: every request brings its whole conversation.
#include <algorithm>
#include <limits>

#include "serving/http/api_schema.h"
#include "serving/http/message_fields.h"
#include "serving/http/request_fields.h"

namespace cadre {
namespace {

// A message's text: a string, or a list of input_text and output_text parts.
std::optional<std::string> PartsText(const Json& content) {
  if (!content.is_array()) return ContentText(content);
  Json plain = content;
  for (Json& part : plain) {
    const Json type = part.is_object() ? part.value("type", Json()) : Json();
    if (type == "input_text" || type == "output_text") part["type"] = "text";
  }
  return ContentText(plain);
}

void ReadItem(JsonFields* fields, const Json& item, const std::string& where, Json* messages) {
  if (!item.is_object()) return fields->Fail(where + " must be an object", where);
  const Json type = item.value("type", Json("message"));
  if (type == "reasoning") return;  // of earlier turns; templates leave it out
  if (type != "message") {
    return fields->Fail(fmt::format("{}: items of type {} are not supported by this server", where,
                                    type.dump().substr(0, 60)),
                        where, "unsupported_parameter");
  }
  const Json role = item.value("role", Json());
  static constexpr std::string_view kRoles[] = {"user", "assistant", "system", "developer"};
  if (!role.is_string() || std::find(std::begin(kRoles), std::end(kRoles),
                                     role.get<std::string>()) == std::end(kRoles)) {
    return fields->Fail(where + ".role must be user, assistant, system or developer",
                        where + ".role");
  }
  const std::optional<std::string> text = PartsText(item.value("content", Json()));
  if (!text) {
    return fields->Fail(where +
                            ".content must be a string or a list of {\"type\": \"input_text\", "
                            "\"text\": ...} parts",
                        where + ".content");
  }
  messages->push_back({{"role", role}, {"content", *text}});
}

void ReadInput(JsonFields* fields, ApiRequest* request) {
  Json messages = Json::array();
  if (const auto instructions = fields->String("instructions")) {
    messages.push_back({{"role", "system"}, {"content", *instructions}});
  }
  const Json* input = fields->Get("input");
  if (!input || (!input->is_string() && !input->is_array()) || input->empty()) {
    return fields->Fail("'input' must be a string or a list of at least one item", "input");
  }
  if (input->is_string()) {
    messages.push_back({{"role", "user"}, {"content", *input}});
  } else {
    for (size_t i = 0; i < input->size(); ++i) {
      ReadItem(fields, (*input)[i], fmt::format("input[{}]", i), &messages);
    }
    if (messages.empty()) fields->Fail("'input' has no message", "input");
  }
  request->chat_input.messages = messages.dump();
}

// What the answer repeats of the request, in the names of the protocol.
Json Repeated(const Json& object, const ApiRequest& request) {
  auto field = [&](const char* name, Json absent) {
    auto found = object.find(name);
    return found == object.end() || found->is_null() ? absent : *found;
  };
  return {{"instructions", field("instructions", nullptr)},
          {"max_output_tokens", field("max_output_tokens", nullptr)},
          {"metadata", field("metadata", Json::object())},
          {"parallel_tool_calls", field("parallel_tool_calls", true)},
          {"previous_response_id", nullptr},
          {"reasoning", {{"effort", nullptr}, {"summary", nullptr}}},
          {"store", false},
          {"temperature", request.sampling.temperature},
          {"text", field("text", {{"format", {{"type", "text"}}}})},
          {"tool_choice", field("tool_choice", "auto")},
          {"tools", Json::array()},
          {"top_p", request.sampling.top_p},
          {"truncation", "disabled"},
          {"user", field("user", nullptr)}};
}

}  // namespace

std::optional<ApiError> ParseResponsesRequest(std::string_view body, const SchemaContext& context,
                                              ApiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  JsonFields fields(object);
  request->chat = true;
  request->input_field = "input";
  ReadScheduling(&fields, context, request);
  ReadInput(&fields, request);
  ReadSampling(&fields, context, request);
  request->form = ReadFormatOf(&fields, "text");
  if (const auto most = fields.Integer("max_output_tokens", 1, std::numeric_limits<int>::max())) {
    request->max_tokens = static_cast<int>(*most);
  }
  request->stream = fields.Bool("stream").value_or(false);
  fields.Get("stream_options");  // there is nothing in it that is done here
  // Nothing is kept, so nothing can be gone back to.
  if (fields.Bool("store").value_or(false)) {
    fields.Fail("'store' is not supported by this server: it keeps no responses", "store",
                "unsupported_parameter");
  }
  if (fields.Get("prompt")) {
    fields.Fail("'prompt' is not supported by this server", "prompt", "unsupported_parameter");
  }
  const Json* tool_choice = fields.Get("tool_choice");
  if (tool_choice && *tool_choice != "auto" && *tool_choice != "none") {
    fields.Fail("'tool_choice' is not supported by this server", "tool_choice",
                "unsupported_parameter");
  }
  RefuseUnbuilt(&fields, *request);
  request->repeated = Repeated(object, *request).dump();
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

}  // namespace cadre
