// The steps of reading a tokenizer file into TokenizerParts, in the order of their call. Private to
// the tokenizer's sources.
#pragma once

#include <absl/status/status.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer_json_node.h"
#include "model/tokenizer_parts.h"

namespace cadre {

// The entries of the file while it is read.
struct TokenizerEntries {
  TokenMap model;  // model.vocab
  std::vector<AddedToken> added;
};

// model.vocab and the added tokens of the file: fills `entries` and the tables by id. Ids are
// unique; all but 65,536 of those below the highest are used, so that a wrong id cannot cost
// memory.
absl::Status LoadVocabulary(const JsonNode& root, TokenizerEntries* entries, TokenizerParts* parts);

// Enters one more added token (of `added_tokens`, or named by the config).
absl::Status EnterAddedToken(const AddedToken& token, const std::string& where,
                             TokenizerEntries* entries, TokenizerParts* parts);
absl::StatusOr<AddedToken> ParseAddedToken(const JsonNode& node);

// The model's options and merges, after the pre-tokenizer is known.
absl::Status LoadMerges(const JsonNode& model, const TokenizerEntries& entries,
                        TokenizerParts* parts);

// What the post-processor puts around one sequence.
absl::Status LoadPostProcessor(const JsonNode& node, TokenizerParts* parts);

// tokenizer_config.json and special_tokens_map.json: names of special tokens (those already known
// stay), added tokens that tokenizer.json lacks, the chat template.
absl::Status LoadConfig(const JsonNode& config, TokenizerEntries* entries, TokenizerParts* parts);

// add_bos_token and add_eos_token, which stand in for a post-processor that adds nothing.
absl::Status LoadConfigBosEos(const JsonNode& config, TokenizerParts* parts);

}  // namespace cadre
