// A run's numbers per step, on disk: metrics.jsonl, one JSON object a line, and a TensorBoard event
// file beside it.
//
//   CADRE_ASSIGN_OR_RETURN(auto jsonl, JsonlWriter::Open(dir + "/metrics.jsonl", resumed_step));
//   CADRE_RETURN_IF_ERROR(jsonl.Write(step, {{"loss", loss}, {"lr", lr}}));
//
// Each Write hands whole records to the system before it returns, so that another process (or a
// crash of this one) sees only whole ones; a record that a full disk cut short is taken back. One
// thread at a time uses a writer. Errors name the file.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/status.h"

namespace cadre {

struct Metric {
  std::string_view name;
  double value = 0;
};

// CRC-32C (Castagnoli) of TFRecord framing.
uint32_t Crc32c(std::string_view bytes);

class JsonlWriter {
 public:
  // Appends. With `last_step`, lines of later steps are cut off first, and so is a torn last line,
  // and whatever follows the first line that is no JSON object with a whole `step`; a step of -1
  // starts the file anew. Without it only a torn last line is cut.
  static absl::StatusOr<JsonlWriter> Open(const std::string& path,
                                          std::optional<int64_t> last_step);
  JsonlWriter(JsonlWriter&& other) noexcept;
  JsonlWriter& operator=(JsonlWriter&& other) noexcept;
  ~JsonlWriter();

  // {"step":S,"name":value,...} in the given order. NaN and infinities, which JSON has no words
  // for, are written as null. Values print with as many digits as they need.
  absl::Status Write(int64_t step, std::span<const Metric> metrics);

 private:
  JsonlWriter() = default;
  std::string path_;
  int descriptor_ = -1;
};

class TensorBoardWriter {
 public:
  // A new file events.out.tfevents.<seconds>.<suffix> in `folder`; TensorBoard reads all of them,
  // and where a resumed run repeats steps it shows the file that began later.
  static absl::StatusOr<TensorBoardWriter> Create(const std::string& folder,
                                                  std::string_view suffix);
  TensorBoardWriter(TensorBoardWriter&& other) noexcept;
  TensorBoardWriter& operator=(TensorBoardWriter&& other) noexcept;
  ~TensorBoardWriter();

  const std::string& path() const { return path_; }
  absl::Status Write(int64_t step, std::span<const Metric> metrics);

 private:
  TensorBoardWriter() = default;
  std::string path_;
  int descriptor_ = -1;
};

}  // namespace cadre
