#include "serving/http/message_fields.h"

#include <algorithm>

#include "serving/http/tool_request.h"

namespace cadre {

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

void ReadMessages(JsonFields* fields, ApiRequest* request) {
  request->input_field = "messages";
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
    auto legacy = message.find("function_call");
    if (legacy != message.end() && !legacy->empty()) {  // null is empty too
      std::string name = where + ".function_call";
      return fields->Fail(name + " is not supported by this server", name, "unsupported_parameter");
    }
    ReadToolCalls(fields, where, &message);
    if (fields->error()) return;
    auto content = message.find("content");
    const bool calls = message.contains("tool_calls");
    if (calls && (content == message.end() || content->is_null())) {
      message["content"] = "";
      continue;
    }
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
    if (i + 1 == normalized.size() && message["role"] == "assistant") request->echo_text = *text;
  }
  request->chat_input.messages = normalized.dump();
}

void ReadTemplateFields(JsonFields* fields, ApiRequest* request) {
  ChatInput& chat = request->chat_input;
  chat.continue_final_message = fields->Bool("continue_final_message").value_or(false);
  chat.add_generation_prompt =
      fields->Bool("add_generation_prompt").value_or(!chat.continue_final_message);
  const Json* kwargs = fields->Get("chat_template_kwargs");
  if (!kwargs) return;
  if (!kwargs->is_object()) {
    fields->Fail("'chat_template_kwargs' must be an object", "chat_template_kwargs");
  } else if (kwargs->contains("chat_template")) {
    fields->Fail("'chat_template' is not allowed in 'chat_template_kwargs'",
                 "chat_template_kwargs");
  }
  chat.kwargs = kwargs->dump();
}

}  // namespace cadre
