// The data of a run, as its configuration says: sources opened, split and blended into sample
// streams.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "core/status.h"
#include "training/document_source.h"
#include "training/sample_stream.h"

namespace cadre {

class ChatTemplate;
class Tokenizer;

namespace config {
class DataConfig;
class DataSource;
}  // namespace config

// What sources of chats need; both null where the run has no tokenizer.
struct ChatTools {
  const ChatTemplate* chat = nullptr;
  const Tokenizer* tokenizer = nullptr;
};

struct TrainingData {
  SampleStream train;
  // Documents in order, never shuffled: an evaluation takes rows 0 to epoch_rows() − 1, or the
  // first of them. None where the configuration holds nothing out.
  std::optional<SampleStream> validation;
};

// A source of kind `chat` is the prefix of a pair that `cadre data build --chat` wrote, or a JSONL
// file with `messages`, which is then rendered, tokenized and kept in memory. `field` names the
// source in errors ("data.sources[0]").
absl::StatusOr<std::shared_ptr<const DocumentSource>> OpenDataSource(
    const config::DataSource& source, const std::string& field, const ChatTools& tools);

// kInvalidArgument: no sources, both kinds of validation at once, too little data for a row.
// `vocab_size` is the model's; larger ids are refused when they are read.
absl::StatusOr<TrainingData> OpenTrainingData(const config::DataConfig& config, int64_t vocab_size,
                                              const ChatTools& tools);

}  // namespace cadre
