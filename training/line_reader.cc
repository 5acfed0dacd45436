#include "training/line_reader.h"

#include <sys/stat.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "core/file.h"

namespace cadre {
namespace {

constexpr size_t kBlock = 1 << 18;
constexpr std::string_view kZstdMagic = "\x28\xB5\x2F\xFD";
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// Where to cut at or before `end` so that no character is split.
size_t CharacterBoundary(std::string_view text, size_t begin, size_t end) {
  size_t cut = end;
  for (int back = 0; back < 3 && cut > begin + 1; ++back, --cut) {
    if ((static_cast<uint8_t>(text[cut]) & 0xC0) != 0x80) return cut;
  }
  return (static_cast<uint8_t>(text[cut]) & 0xC0) != 0x80 ? cut : end;
}

}  // namespace

struct LineReader::Decompressor {
  ZSTD_DStream* stream = ZSTD_createDStream();
  ZSTD_inBuffer input{};
  bool frame_ended = true;
  ~Decompressor() { ZSTD_freeDStream(stream); }
};

LineReader::LineReader(std::string path, std::FILE* file, int64_t file_bytes)
    : path_(std::move(path)), file_(file), file_bytes_(file_bytes) {}

LineReader::~LineReader() { std::fclose(file_); }

absl::StatusOr<std::unique_ptr<LineReader>> LineReader::Open(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return ErrnoError(path, "cannot open", errno);
  struct stat info {};
  int failed = fstat(fileno(file), &info);
  std::unique_ptr<LineReader> reader(
      new LineReader(path, file, S_ISREG(info.st_mode) ? info.st_size : 0));
  if (failed != 0) return ErrnoError(path, "cannot stat", errno);
  if (S_ISDIR(info.st_mode)) return InvalidArgument("{}: is a folder; a file is needed", path);
  CADRE_RETURN_IF_ERROR(reader->Start());
  return reader;
}

absl::Status LineReader::ReadRaw() {
  raw_.resize(kBlock);
  size_t size = std::fread(raw_.data(), 1, raw_.size(), file_);
  if (std::ferror(file_) != 0) return ErrnoError(path_, "cannot read", errno);
  raw_.resize(size);
  bytes_read_ += static_cast<int64_t>(size);
  return absl::OkStatus();
}

absl::Status LineReader::Start() {
  CADRE_RETURN_IF_ERROR(ReadRaw());
  if (raw_.starts_with(kZstdMagic)) {
    zstd_ = std::make_unique<Decompressor>();
    zstd_->input = {raw_.data(), raw_.size(), 0};
    CADRE_RETURN_IF_ERROR(Refill());
  } else {
    buffer_ = std::move(raw_);
  }
  if (buffer_.starts_with(kByteOrderMark)) position_ = kByteOrderMark.size();
  return absl::OkStatus();
}

absl::Status LineReader::Refill() {
  position_ = 0;
  if (zstd_ == nullptr) {
    CADRE_RETURN_IF_ERROR(ReadRaw());
    std::swap(raw_, buffer_);
    return absl::OkStatus();
  }
  buffer_.resize(kBlock);
  ZSTD_outBuffer output{buffer_.data(), buffer_.size(), 0};
  while (output.pos == 0) {
    size_t consumed = zstd_->input.pos;
    size_t result = ZSTD_decompressStream(zstd_->stream, &output, &zstd_->input);
    if (ZSTD_isError(result)) {
      return DataLoss("{}: broken zstd data: {}", path_, ZSTD_getErrorName(result));
    }
    // A call that moves nothing only says how much it would like to read next.
    if (output.pos > 0 || zstd_->input.pos > consumed) zstd_->frame_ended = result == 0;
    if (output.pos > 0 || zstd_->input.pos < zstd_->input.size) continue;
    CADRE_RETURN_IF_ERROR(ReadRaw());
    zstd_->input = {raw_.data(), raw_.size(), 0};
    if (!raw_.empty()) continue;
    if (!zstd_->frame_ended) return DataLoss("{}: its zstd data end early", path_);
    break;
  }
  buffer_.resize(output.pos);
  return absl::OkStatus();
}

absl::StatusOr<bool> LineReader::Next(size_t max_bytes, std::string* line) {
  line->clear();
  if (line_ended_) ++line_;
  line_ended_ = false;
  while (true) {
    if (position_ == buffer_.size()) {
      CADRE_RETURN_IF_ERROR(Refill());
      if (buffer_.empty()) return !line->empty();
    }
    size_t end = buffer_.find('\n', position_);
    line_ended_ = end != std::string::npos;
    end = line_ended_ ? end + 1 : buffer_.size();
    line->append(buffer_, position_, end - position_);
    position_ = end;
    if (line->size() > max_bytes) {
      // What is too much goes back in front of the rest.
      size_t cut = CharacterBoundary(*line, 0, max_bytes);
      buffer_ = line->substr(cut) + buffer_.substr(position_);
      position_ = 0;
      line->resize(cut);
      line_ended_ = false;
      return true;
    }
    if (line_ended_) return true;
  }
}

}  // namespace cadre
