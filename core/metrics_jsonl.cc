#include <fcntl.h>
#include <simdjson.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/file.h"
#include "core/metrics.h"

namespace cadre {
namespace {

constexpr int64_t kMaxBytes = int64_t{4} << 30;

// Bytes of the leading whole lines whose steps are at most `last_step`.
size_t KeptBytes(std::string_view text, std::optional<int64_t> last_step) {
  if (!last_step) return text.rfind('\n') + 1;
  simdjson::dom::parser parser;
  size_t kept = 0;
  while (true) {
    const size_t end = text.find('\n', kept);
    if (end == std::string_view::npos) return kept;
    int64_t step = 0;
    if (parser.parse(std::string(text.substr(kept, end - kept)))["step"].get(step)) return kept;
    if (step > *last_step) return kept;
    kept = end + 1;
  }
}

}  // namespace

absl::StatusOr<JsonlWriter> JsonlWriter::Open(const std::string& path,
                                              std::optional<int64_t> last_step) {
  JsonlWriter writer;
  writer.path_ = path;
  absl::StatusOr<std::string> text = ReadFile(path, kMaxBytes);
  if (text.status().code() == absl::StatusCode::kNotFound) text = "";
  CADRE_RETURN_IF_ERROR(text.status());
  const size_t kept = KeptBytes(*text, last_step);
  writer.descriptor_ = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (writer.descriptor_ < 0) return ErrnoError(path, "cannot open", errno);
  if (kept != text->size() && ftruncate(writer.descriptor_, static_cast<off_t>(kept)) != 0) {
    return ErrnoError(path, "cannot cut", errno);
  }
  return writer;
}

JsonlWriter::JsonlWriter(JsonlWriter&& other) noexcept { *this = std::move(other); }

JsonlWriter& JsonlWriter::operator=(JsonlWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

JsonlWriter::~JsonlWriter() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::Status JsonlWriter::Write(int64_t step, std::span<const Metric> metrics) {
  std::string line = fmt::format("{{\"step\":{}", step);
  for (const Metric& metric : metrics) {
    line += fmt::format(",{}:", nlohmann::json(metric.name).dump());
    line += std::isfinite(metric.value) ? fmt::format("{}", metric.value) : "null";
  }
  return AppendWhole(descriptor_, path_, line + "}\n");
}

}  // namespace cadre
