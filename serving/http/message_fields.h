// Messages of a chat, as OpenAI writes them, for the chat template. Any thread.
#pragma once

#include <optional>
#include <string>

#include "serving/http/api_request.h"
#include "serving/http/json_fields.h"

namespace cadre {

// A content's text: a string, or {"type": "text", "text": ...} parts joined by line breaks. Nothing
// where it is something else.
std::optional<std::string> ContentText(const Json& content);

// `messages`, each content as one string, into chat_input.
void ReadMessages(JsonFields* fields, ApiRequest* request);

// add_generation_prompt, continue_final_message, chat_template_kwargs.
void ReadTemplateFields(JsonFields* fields, ApiRequest* request);

}  // namespace cadre
