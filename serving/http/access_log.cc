#include "serving/http/access_log.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <spdlog/logger.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "core/file.h"

namespace cadre {
namespace {

absl::StatusOr<int> OpenFile(const std::string& path) {
  if (path == "-") return STDERR_FILENO;
  const int descriptor = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
  if (descriptor < 0) return ErrnoError(path, "cannot open the access log", errno);
  return descriptor;
}

void CloseFile(int descriptor) {
  if (descriptor != STDERR_FILENO) close(descriptor);
}

// Every text here is of a charset that needs no escapes.
std::string Line(const CallInfo& call, const AccessRecord& record) {
  const auto now =
      std::chrono::time_point_cast<std::chrono::milliseconds>(std::chrono::system_clock::now());
  std::string line = fmt::format(R"({{"time":"{:%FT%T}Z","id":"{}")", now, call.request_id);
  auto text = [&](const char* name, std::string_view value) {
    if (!value.empty()) line += fmt::format(R"(,"{}":"{}")", name, value);
  };
  auto seconds = [&](const char* name, double value) {
    if (value >= 0) line += fmt::format(R"(,"{}":{:.6f})", name, value);
  };
  auto count = [&](const char* name, int64_t value) {
    if (value >= 0) line += fmt::format(R"(,"{}":{})", name, value);
  };
  if (call.trace) text("trace", call.trace->trace_id);
  text("method", record.method);
  text("route", record.route);
  count("status", record.status);
  count("bytes_in", static_cast<int64_t>(record.bytes_in));
  count("bytes_out", static_cast<int64_t>(record.bytes_out));
  seconds("seconds", record.seconds);
  seconds("first_token_seconds", record.first_token_seconds);
  seconds("queue_seconds", record.queue_seconds);
  seconds("prefill_seconds", record.prefill_seconds);
  count("prompt_tokens", record.prompt_tokens);
  count("generation_tokens", record.generation_tokens);
  text("finish", record.finish);
  text("key", call.key);
  return line + "}\n";
}

}  // namespace

absl::StatusOr<std::unique_ptr<AccessLog>> AccessLog::Open(const std::string& path,
                                                           std::shared_ptr<spdlog::logger> log) {
  CADRE_ASSIGN_OR_RETURN(const int descriptor, OpenFile(path));
  return std::unique_ptr<AccessLog>(new AccessLog(path, descriptor, std::move(log)));
}

AccessLog::~AccessLog() { CloseFile(descriptor_); }

void AccessLog::Write(const CallInfo& call, const AccessRecord& record) {
  const std::string line = Line(call, record);
  std::lock_guard lock(mutex_);
  const absl::Status status = WriteAll(descriptor_, path_, line);
  const bool news = !status.ok() && !failed_;
  if (news && log_ != nullptr) log_->error("access log: {}", Message(status));
  failed_ = !status.ok();
}

absl::Status AccessLog::Reopen() {
  CADRE_ASSIGN_OR_RETURN(const int descriptor, OpenFile(path_));
  std::lock_guard lock(mutex_);
  CloseFile(std::exchange(descriptor_, descriptor));
  return absl::OkStatus();
}

}  // namespace cadre
