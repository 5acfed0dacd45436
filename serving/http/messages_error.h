// Errors as Anthropic's clients read them: {"type": "error", "error": {type, message}}. Any thread.
#pragma once

#include <string>

#include "serving/http/api_error.h"

namespace cadre {

std::string MessagesErrorBody(const ApiError& error);

}  // namespace cadre
