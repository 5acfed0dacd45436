// The access log: one JSON object a line for each request that was answered or broken off. It names
// keys by their digests and paths by their routes; prompts, keys, query strings and addresses never
// come here.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "core/status.h"
#include "serving/http/call_info.h"

namespace spdlog {
class logger;
}

namespace cadre {

// Seconds are since the request's first byte; what is negative is not known and left out.
struct AccessRecord {
  std::string_view method = "other";  // of those that HTTP knows
  std::string_view route = "other";   // of the router's table
  int status = 0;                     // 0: the client left before there was one
  uint64_t bytes_in = 0;              // of the connection, since the request before
  uint64_t bytes_out = 0;
  double seconds = 0;
  double first_token_seconds = -1;
  double queue_seconds = -1;
  double prefill_seconds = -1;
  int64_t prompt_tokens = -1;
  int64_t generation_tokens = -1;
  std::string_view finish;  // stop, length, cancelled, error; empty where nothing was generated
};

class AccessLog {
 public:
  // Appends to the file, "-" is standard error. Errors name it. log: where a disk that fails is
  // told; null: nowhere.
  static absl::StatusOr<std::unique_ptr<AccessLog>> Open(const std::string& path,
                                                         std::shared_ptr<spdlog::logger> log);
  ~AccessLog();
  AccessLog(const AccessLog&) = delete;
  AccessLog& operator=(const AccessLog&) = delete;

  // One line, whole. A full disk loses lines, which is said once. Any thread.
  void Write(const CallInfo& call, const AccessRecord& record);

  // After the file was moved away: goes on in a new one of its name. Any thread.
  absl::Status Reopen();

 private:
  AccessLog(std::string path, int descriptor, std::shared_ptr<spdlog::logger> log)
      : path_(std::move(path)), log_(std::move(log)), descriptor_(descriptor) {}

  const std::string path_;
  const std::shared_ptr<spdlog::logger> log_;
  std::mutex mutex_;
  int descriptor_;
  bool failed_ = false;
};

}  // namespace cadre
