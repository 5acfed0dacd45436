// From the data part of a run's configuration to its sample streams.
#pragma once

#include <optional>
#include <string>

#include "core/status.h"
#include "proto/train_config.pb.h"
#include "training/sample_stream.h"

namespace cadre {

struct TrainingData {
  SampleStream train;
  std::optional<SampleStream> validation;  // absent where nothing is held out
};

// Opens every source: token data (with PREFIX.mask beside it, the mask of a chat), or JSONL of
// chats, which are rendered and tokenized here with `tokenizer_folder`'s template and tokenizer and
// kept in memory. Errors name the source and the field.
absl::StatusOr<TrainingData> OpenTrainingData(const config::DataConfig& config,
                                              const std::string& tokenizer_folder,
                                              int64_t vocab_size);

}  // namespace cadre
