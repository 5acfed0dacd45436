// Text, JSONL and chats into token data (PREFIX.bin/.idx), streamed: memory does not grow with the
// input, except for eight bytes a document.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/status.h"

namespace cadre {

class ChatTemplate;
class Tokenizer;

enum class TextSplit : uint8_t {
  kBlankLines,  // runs of blank lines end a document
  kFile,        // a file is a document
  kSeparator,   // a line equal to `separator` ends a document and belongs to none
  kLines,       // every `lines` lines are a document
};

struct DataBuildOptions {
  std::vector<std::string> inputs;  // plain or zstd, told apart by their first bytes
  std::string output;               // prefix of the files to write
  // Files named *.jsonl or *.jsonl.zst hold a JSON object a line, whose string at this key is a
  // document; `jsonl` says so of all files.
  bool jsonl = false;
  std::string jsonl_field = "text";
  // Lines are objects with `messages`; also writes PREFIX.mask.bin/.idx.
  const ChatTemplate* chat = nullptr;
  TextSplit split = TextSplit::kBlankLines;
  std::string separator;
  int64_t lines = 0;
  bool append_eos = false;  // after each document; the tokenizer must have an end-of-sequence token
};

struct DataBuildProgress {
  int64_t bytes_done = 0;   // of the files as they are stored
  int64_t bytes_total = 0;  // 0: not known
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t loss_tokens = 0;  // of chats: what the loss counts
};

// `report` is called about once a megabyte. Errors are one line with file and line: kDataLoss for
// what the inputs hold (invalid UTF-8, a line that is not what it should be, no document at all),
// kInvalidArgument for options, and what the file system says. After an error the output is what it
// was before.
absl::StatusOr<DataBuildProgress> BuildData(
    const DataBuildOptions& options, const Tokenizer& tokenizer,
    const std::function<void(const DataBuildProgress&)>& report);

}  // namespace cadre
