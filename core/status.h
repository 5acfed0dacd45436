// Status helpers. What can go wrong in the world (files, peers, clients, configs) returns
// absl::Status with one clear line: what, where (file, field, layer), the value, what is allowed.
// A broken invariant of the program is a CADRE_CHECK, which logs the line and aborts.
//
//   absl::StatusOr<Tensor> Load(const std::string& path) {
//     CADRE_ASSIGN_OR_RETURN(auto bytes, ReadFile(path));
//     if (bytes.size() < 8) return InvalidArgument("{}: {} bytes, at least 8 needed", path,
//     bytes.size());
//     ...
//   }
//
// Debian's abseil has a string_view of its own: convert messages with Message(status).
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/core.h>

#include <string>
#include <utility>

namespace cadre {

inline std::string Message(const absl::Status& status) { return std::string(status.message()); }

template <typename... Args>
absl::Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return absl::NotFoundError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status DataLoss(fmt::format_string<Args...> format, Args&&... args) {
  return absl::DataLossError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return absl::UnavailableError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status ResourceExhausted(fmt::format_string<Args...> format, Args&&... args) {
  return absl::ResourceExhaustedError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Unimplemented(fmt::format_string<Args...> format, Args&&... args) {
  return absl::UnimplementedError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Internal(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InternalError(fmt::format(format, std::forward<Args>(args)...));
}

// Puts "context: " before a failure's message and keeps its code.
absl::Status Annotate(const absl::Status& status, const std::string& context);

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& message);

}  // namespace cadre

#define CADRE_CHECK(condition, ...)                                                        \
  do {                                                                                     \
    if (!(condition)) [[unlikely]]                                                         \
      ::cadre::CheckFailed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)

#define CADRE_RETURN_IF_ERROR(expression)                                   \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

#define CADRE_CONCAT_INNER(a, b) a##b
#define CADRE_CONCAT(a, b) CADRE_CONCAT_INNER(a, b)
#define CADRE_ASSIGN_OR_RETURN(declaration, expression) \
  CADRE_ASSIGN_OR_RETURN_IMPL(CADRE_CONCAT(status_or_, __LINE__), declaration, expression)
#define CADRE_ASSIGN_OR_RETURN_IMPL(holder, declaration, expression) \
  auto holder = (expression);                                        \
  if (!holder.ok()) return holder.status();                          \
  declaration = std::move(holder).value()
