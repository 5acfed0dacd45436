// Reads a trace that core/trace.h wrote, an event at a time, whole or cut short.
#pragma once

#include <fstream>
#include <string>

#include <nlohmann/json.hpp>

#include "core/status.h"

namespace cadre {

class TraceLines {
 public:
  static absl::StatusOr<TraceLines> Open(const std::string& path);

  // False: there are no more. kDataLoss: a line that is no event, the last one apart, which a crash
  // may have cut.
  absl::StatusOr<bool> Next(nlohmann::json* event);

 private:
  explicit TraceLines(const std::string& path) : path_(path), file_(path, std::ios::binary) {}
  absl::StatusOr<bool> ReadLine(std::string* line);

  std::string path_;
  std::ifstream file_;
  int64_t number_ = 0;
};

}  // namespace cadre
