#include "serving/http/api_error.h"

#include <nlohmann/json.hpp>

#include "serving/retry_after.h"

namespace cadre {
namespace {

const char* TypeOf(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 408:
      return "timeout_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

// The engine's refusals begin with the field that is at fault: "kv_budget: 3, at least ...".
std::string FieldOf(std::string_view message) {
  const size_t end = message.find_first_not_of("abcdefghijklmnopqrstuvwxyz_");
  const bool is_field = end != message.npos && message.substr(end).starts_with(": ");
  return std::string(is_field ? message.substr(0, end) : "");
}

}  // namespace

std::string ApiError::Body() const {
  auto text_or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
  };
  nlohmann::ordered_json body = {{"error",
                                  {{"message", message},
                                   {"type", TypeOf(status)},
                                   {"param", text_or_null(param)},
                                   {"code", text_or_null(code)}}}};
  // Messages may quote what a client sent.
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

ApiError FromStatus(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
      return {400, Message(status), FieldOf(Message(status)), "invalid_value"};
    case absl::StatusCode::kResourceExhausted:
      return {429, Message(status), "", "queue_full", RetryAfterOf(status).value_or(1)};
    case absl::StatusCode::kAborted:
      return {409, Message(status), "", "aborted"};
    case absl::StatusCode::kUnavailable:
      return {503, Message(status), "", "unavailable"};
    default:
      return {500, Message(status), "", "internal_error"};
  }
}

ApiError FromFailure(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return FromStatus(status);
  return BadRequest(Message(status), "", "grammar_limit");
}

}  // namespace cadre
