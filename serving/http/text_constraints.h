// The grammars that requests ask for, compiled for the server's vocabulary and kept for the next
// request that asks for the same. Any thread; the work is done in the caller's, the front pool's.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "model/tokenizer.h"
#include "serving/grammar/grammar_cache.h"
#include "serving/http/api_error.h"
#include "serving/http/api_request.h"
#include "serving/http/message_parser.h"

namespace cadre {

class TextConstraints {
 public:
  // The tokenizer outlives it.
  explicit TextConstraints(const Tokenizer& tokenizer, GrammarCache::Options options = {});

  // Of a text form or of a forced call, behind the thoughts of a message that may have some. Leaves
  // `grammar` null where the text is free. 400 names the field; 429: others hold all that grammars
  // may take.
  std::optional<ApiError> Find(const ApiRequest& request, const MessageFormat& message,
                               std::shared_ptr<const CompiledGrammar>* grammar);

  // Whether the message's parsers look for what are special tokens here, which then must show.
  bool NeedsMarkers(const MessageFormat& message) const;

 private:
  GrammarCache& Cache(bool markers);

  const Tokenizer& tokenizer_;
  const GrammarCache::Options options_;
  std::vector<int32_t> markers_;      // special tokens that formats of messages are made of
  bool thoughts_are_marked_ = false;  // the tags of thoughts are among them
  // Many servers never see a grammar: the vocabulary's tree waits for one.
  std::once_flag once_[2];
  std::unique_ptr<GrammarCache> caches_[2];  // without the markers, and with them
};

}  // namespace cadre
