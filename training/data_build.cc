#include "training/data_build.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>

#include <nlohmann/json.hpp>

#include "model/tokenizer.h"
#include "training/chat_tokens.h"
#include "training/indexed_dataset.h"
#include "training/indexed_documents.h"
#include "training/line_reader.h"

namespace cadre {
namespace {

// Longer documents are encoded in parts that end with a line, each a sequence of the document.
constexpr size_t kPartBytes = size_t{4} << 20;
constexpr size_t kMaxJsonLine = size_t{256} << 20;
constexpr int64_t kReportBytes = 1 << 20;

std::string_view WithoutBreak(std::string_view line) {
  if (line.ends_with('\n')) line.remove_suffix(1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

bool IsBlank(std::string_view line) {
  return line.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

class Builder {
 public:
  static absl::StatusOr<Builder> Create(const DataBuildOptions& options,
                                        const Tokenizer& tokenizer) {
    TokenType type = TokenTypeFor(tokenizer.vocab_size());
    CADRE_ASSIGN_OR_RETURN(auto tokens, IndexedDatasetWriter::Create(options.output, type));
    Builder builder(options, tokenizer, std::move(tokens));
    if (options.chat != nullptr) {
      CADRE_ASSIGN_OR_RETURN(
          builder.mask_, IndexedDatasetWriter::Create(MaskPrefix(options.output), TokenType::kU8));
    }
    return builder;
  }

  absl::Status AddFile(const std::string& path,
                       const std::function<void(const DataBuildProgress&)>& report) {
    CADRE_ASSIGN_OR_RETURN(auto reader, LineReader::Open(path));
    bool json = options_.jsonl || options_.chat != nullptr || path.ends_with(".jsonl") ||
                path.ends_with(".jsonl.zst");
    std::string line;
    int64_t before = progress_.bytes_done, reported = 0;
    lines_ = 0;
    while (true) {
      CADRE_ASSIGN_OR_RETURN(bool more, reader->Next(json ? kMaxJsonLine : kPartBytes, &line));
      if (!more) break;
      absl::Status status = AddLine(json, line);
      if (!status.ok()) return Annotate(status, fmt::format("{}:{}", path, reader->line()));
      progress_.bytes_done = before + reader->bytes_read();
      if (reader->bytes_read() - reported >= kReportBytes) {
        reported = reader->bytes_read();
        report(progress_);
      }
    }
    if (!json) CADRE_RETURN_IF_ERROR(EndDocument());
    progress_.bytes_done = before + reader->bytes_read();
    report(progress_);
    return absl::OkStatus();
  }

  absl::StatusOr<DataBuildProgress> Finish() {
    if (progress_.tokens == 0) {
      return DataLoss("{}: no text in it; at least one document is needed", Inputs());
    }
    if (mask_.has_value() && progress_.loss_tokens == 0) {
      return DataLoss("{}: no assistant message in it, so there is nothing to learn", Inputs());
    }
    if (mask_.has_value()) {
      CADRE_RETURN_IF_ERROR(mask_->Finish());
    } else {
      // A mask of an earlier build with this prefix must not be taken for this one's.
      std::error_code error;
      std::filesystem::remove(MaskPrefix(options_.output) + ".idx", error);
      std::filesystem::remove(MaskPrefix(options_.output) + ".bin", error);
    }
    CADRE_RETURN_IF_ERROR(tokens_.Finish());
    return progress_;
  }

  void set_bytes_total(int64_t bytes) { progress_.bytes_total = bytes; }

 private:
  Builder(const DataBuildOptions& options, const Tokenizer& tokenizer, IndexedDatasetWriter tokens)
      : options_(options), tokenizer_(tokenizer), tokens_(std::move(tokens)) {}

  std::string Inputs() const {
    return options_.inputs.size() == 1
               ? options_.inputs[0]
               : fmt::format("{} and {} more", options_.inputs[0], options_.inputs.size() - 1);
  }

  absl::Status AddLine(bool json, const std::string& line) {
    size_t valid = ValidUtf8Prefix(line);
    if (valid != line.size()) return DataLoss("not valid UTF-8 at byte {} of the line", valid);
    if (options_.chat != nullptr) return IsBlank(line) ? absl::OkStatus() : AddChat(line);
    if (json) return IsBlank(line) ? absl::OkStatus() : AddJson(line);
    return AddText(line);
  }

  absl::Status AddText(const std::string& line) {
    bool blank_end = options_.split == TextSplit::kBlankLines && IsBlank(line);
    bool separator =
        options_.split == TextSplit::kSeparator && WithoutBreak(line) == options_.separator;
    if (blank_end || separator) return EndDocument();
    text_ += line;
    if (text_.size() >= kPartBytes) CADRE_RETURN_IF_ERROR(Flush());
    if (options_.split != TextSplit::kLines || !line.ends_with('\n')) return absl::OkStatus();
    return ++lines_ % options_.lines == 0 ? EndDocument() : absl::OkStatus();
  }

  absl::Status AddJson(const std::string& line) {
    nlohmann::json row = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object() || !row.contains(options_.jsonl_field) ||
        !row[options_.jsonl_field].is_string()) {
      return DataLoss("a JSON object with a string \"{}\" is needed", options_.jsonl_field);
    }
    text_ = row[options_.jsonl_field].get<std::string>();
    return EndDocument();
  }

  absl::Status AddChat(const std::string& line) {
    auto chat = TokenizeChatLine(*options_.chat, tokenizer_, line);
    if (!chat.ok()) return DataLoss("{}", Message(chat.status()));
    std::vector<int32_t> mask(chat->mask.begin(), chat->mask.end());
    CADRE_RETURN_IF_ERROR(tokens_.AddDocument(chat->ids));
    CADRE_RETURN_IF_ERROR(mask_->AddDocument(mask));
    ++progress_.documents;
    progress_.tokens += static_cast<int64_t>(mask.size());
    progress_.loss_tokens += std::count(mask.begin(), mask.end(), 1);
    return absl::OkStatus();
  }

  // Encodes the text at hand; the last part's ids wait for the end of the document.
  absl::Status Flush() {
    if (text_.empty()) return absl::OkStatus();
    CADRE_RETURN_IF_ERROR(AddPending());
    pending_ = tokenizer_.Encode(text_);
    text_.clear();
    return absl::OkStatus();
  }

  absl::Status AddPending() {
    if (pending_.empty()) return absl::OkStatus();
    CADRE_RETURN_IF_ERROR(tokens_.AddSequence(pending_));
    progress_.tokens += static_cast<int64_t>(pending_.size());
    open_ = true;
    pending_.clear();
    return absl::OkStatus();
  }

  absl::Status EndDocument() {
    CADRE_RETURN_IF_ERROR(Flush());
    if (pending_.empty() && !open_) return absl::OkStatus();
    if (options_.append_eos) pending_.push_back(*tokenizer_.eos_id());
    CADRE_RETURN_IF_ERROR(AddPending());
    tokens_.EndDocument();
    open_ = false;
    ++progress_.documents;
    return absl::OkStatus();
  }

  const DataBuildOptions& options_;
  const Tokenizer& tokenizer_;
  IndexedDatasetWriter tokens_;
  std::optional<IndexedDatasetWriter> mask_;
  DataBuildProgress progress_;
  std::string text_;              // of the document, not encoded yet
  std::vector<int32_t> pending_;  // encoded, not written yet
  bool open_ = false;             // parts of the document are written
  int64_t lines_ = 0;             // of the file
};

absl::Status CheckOptions(const DataBuildOptions& options, const Tokenizer& tokenizer) {
  if (options.inputs.empty()) return InvalidArgument("no input file");
  if (options.append_eos && !tokenizer.eos_id().has_value()) {
    return InvalidArgument("append_eos: the tokenizer names no end-of-sequence token");
  }
  if (options.split == TextSplit::kLines && options.lines < 1) {
    return InvalidArgument("lines per document: {}; at least 1 is needed", options.lines);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DataBuildProgress> BuildData(
    const DataBuildOptions& options, const Tokenizer& tokenizer,
    const std::function<void(const DataBuildProgress&)>& report) {
  CADRE_RETURN_IF_ERROR(CheckOptions(options, tokenizer));
  int64_t total = 0;
  for (const std::string& path : options.inputs) {
    std::error_code error;
    auto size = std::filesystem::file_size(path, error);
    if (!error) total += static_cast<int64_t>(size);
  }
  CADRE_ASSIGN_OR_RETURN(Builder builder, Builder::Create(options, tokenizer));
  builder.set_bytes_total(total);
  for (const std::string& path : options.inputs) {
    CADRE_RETURN_IF_ERROR(builder.AddFile(path, report));
  }
  return builder.Finish();
}

}  // namespace cadre
