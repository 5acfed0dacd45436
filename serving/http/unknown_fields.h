// Tells the log, once for each name, which fields clients send that no endpoint knows. Any thread.
#pragma once

#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace spdlog {
class logger;
}

namespace cadre {

class UnknownFields {
 public:
  explicit UnknownFields(std::shared_ptr<spdlog::logger> log) : log_(std::move(log)) {}

  // Names that could forge lines of the log, or command the terminal that shows it, are not told.
  void Log(const std::vector<std::string>& names);

 private:
  const std::shared_ptr<spdlog::logger> log_;  // null: nothing is told
  std::mutex mutex_;
  std::set<std::string> told_;
};

}  // namespace cadre
