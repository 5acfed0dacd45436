// What a Tokenizer is made of. Private to the tokenizer's sources.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "model/tokenizer_added_tokens.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_decoder.h"
#include "model/tokenizer_normalizer.h"
#include "model/tokenizer_pre_tokenizer.h"

namespace cadre {

// Everything that one call of Encode works in.
struct EncodeScratch {
  RegexScratch regex;
  BpeScratch bpe;
  PreTokenizedText work;
  std::string joined, normalized, spare;
  std::vector<TextPiece> runs;
  std::vector<TokenSegment> segments, inner;
  size_t most_ids = SIZE_MAX;  // see EncodeOptions
};

// Lends scratch to any thread; made on demand, kept for the next call.
class EncodeScratchPool {
 public:
  std::unique_ptr<EncodeScratch> Take();
  void Give(std::unique_ptr<EncodeScratch> scratch);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<EncodeScratch>> free_;
};

struct TokenizerParts {
  // By id: the entry as written (empty: unused id), its bytes, what it is.
  std::vector<std::string> tokens;
  std::vector<std::string> bytes;
  std::vector<bool> added, special;
  TokenMap ids;

  // Special tokens match in text as it is given, whatever their `normalized` says: inside mixed
  // spans nobody could tell what a match in normalized text came from.
  AddedTokenMatcher raw_tokens;         // not special, not normalized
  AddedTokenMatcher raw_and_special;    // these and the special ones
  AddedTokenMatcher normalized_tokens;  // not special, normalized

  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::optional<Bpe> bpe;
  std::optional<TokenDecoder> decoder;
  std::vector<int32_t> prefix_ids, suffix_ids;  // of add_special_tokens

  std::optional<int32_t> bos_id, eos_id, pad_id, unk_id;
  std::string chat_template;

  mutable EncodeScratchPool scratch;
};

}  // namespace cadre
