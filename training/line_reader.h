// Lines of a text file, plain or zstd (told apart by its first bytes), read as a stream: memory is
// bounded whatever the file's size.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "core/status.h"

namespace cadre {

class LineReader {
 public:
  // kNotFound, kPermissionDenied, kInvalidArgument (a folder) where the file cannot be read.
  static absl::StatusOr<std::unique_ptr<LineReader>> Open(const std::string& path);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line with its line break; false at the end of the file. A line above `max_bytes` comes
  // in parts, all but the last without a line break and cut between characters. kDataLoss: a read
  // error, or compressed data that are broken or end early.
  absl::StatusOr<bool> Next(size_t max_bytes, std::string* line);

  const std::string& path() const { return path_; }
  int64_t line() const { return line_; }              // of what Next returned last, from 1
  int64_t bytes_read() const { return bytes_read_; }  // of the file as it is stored
  int64_t file_bytes() const { return file_bytes_; }  // 0 for pipes

 private:
  struct Decompressor;
  LineReader(std::string path, std::FILE* file, int64_t file_bytes);
  absl::Status Start();
  // Replaces buffer_ by the next block of text; empty at the end.
  absl::Status Refill();
  absl::Status ReadRaw();

  std::string path_;
  std::FILE* file_;
  int64_t file_bytes_;
  int64_t bytes_read_ = 0;
  int64_t line_ = 0;
  bool line_ended_ = true;
  std::string raw_;     // as stored
  std::string buffer_;  // text
  size_t position_ = 0;
  std::unique_ptr<Decompressor> zstd_;
};

}  // namespace cadre
