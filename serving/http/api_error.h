// An error as an HTTP client sees it: a status and {"error": {message, type, param, code}}.
#pragma once

#include <optional>
#include <string>

#include "core/status.h"

namespace cadre {

struct ApiError {
  int status = 400;
  std::string message;
  std::string param;    // the field at fault; empty: null in the body
  std::string code;     // a word for programs; empty: null
  int retry_after = 1;  // seconds, of 429 and 503

  // The body's type follows from the status ("invalid_request_error", "rate_limit_error", ...).
  std::string Body() const;
};

inline ApiError BadRequest(std::string message, std::string param = {}, std::string code = {}) {
  return {400, std::move(message), std::move(param), std::move(code)};
}

// Of a refusal. kInvalidArgument, kUnimplemented: 400. kResourceExhausted: 429. kAborted: 409.
// kUnavailable: 503. Else 500.
ApiError FromStatus(const absl::Status& status);
// Of an answer that ended before its time. It had its place in the queue: what it is out of is its
// grammar's work, which another attempt would be, too. kResourceExhausted: 400. Else as above.
ApiError FromFailure(const absl::Status& status);

}  // namespace cadre
