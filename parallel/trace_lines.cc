#include "parallel/trace_lines.h"

#include <cstring>
#include <vector>

namespace cadre {
namespace {

// No event is longer.
constexpr size_t kMaxLine = size_t{1} << 20;

}  // namespace

absl::StatusOr<TraceLines> TraceLines::Open(const std::string& path) {
  TraceLines lines(path);
  if (!lines.file_) return NotFound("{}: cannot be opened", path);
  return lines;
}

absl::StatusOr<bool> TraceLines::ReadLine(std::string* line) {
  line->resize(kMaxLine);
  file_.getline(line->data(), static_cast<std::streamsize>(kMaxLine));
  if (file_.bad()) return DataLoss("{}: cannot be read", path_);
  const std::streamsize read = file_.gcount();
  if (read == 0 && file_.eof()) return false;
  ++number_;
  if (file_.fail() && !file_.eof()) {
    return DataLoss("{}:{}: a line of more than {} bytes", path_, number_, kMaxLine);
  }
  // The end of the line is counted where there is one.
  line->resize(static_cast<size_t>(read) - (file_.eof() ? 0 : 1));
  return true;
}

absl::StatusOr<bool> TraceLines::Next(nlohmann::json* event) {
  std::string line;
  while (true) {
    CADRE_ASSIGN_OR_RETURN(const bool more, ReadLine(&line));
    if (!more) return false;
    while (!line.empty() && (line.back() == ',' || line.back() == '\r')) line.pop_back();
    if (line.empty() || line == "[" || line == "]") continue;
    *event = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (event->is_object()) return true;
    if (file_.eof() || file_.peek() == std::ifstream::traits_type::eof()) return false;
    return DataLoss("{}:{}: not a trace event", path_, number_);
  }
}

}  // namespace cadre
