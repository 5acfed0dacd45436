// One sequence's token events to text: detokenizes, matches stop strings on the text, collects
// logprobs, and says when the sequence has ended.
//
// Text is handed out as soon as it is certain: never a part of a multi-byte character, and never
// text that could still turn out to be the beginning of a stop string. What Push returns, put
// together, is the same whatever way the tokens arrive, so streamed and whole answers agree. One
// thread at a time; must not outlive the tokenizer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/tokenizer.h"
#include "serving/request.h"

namespace cadre {

// One token's logprobs, with the text it stands for.
struct LogprobEntry {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;
  bool has_logprob = true;  // the first token of a prompt has none
  size_t text_offset = 0;   // bytes of the sequence's text before this token
};

struct ChoiceDelta {
  size_t choice = 0;  // set by whoever owns several decoders
  std::string text;
  std::vector<LogprobEntry> logprobs;  // of the tokens whose text begins in `text` or before
  FinishReason finish = FinishReason::kNone;
  absl::Status error;
  // As the engine gave them, in the first delta where the request asked for them.
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<std::vector<TokenLogprob>> prompt_top;
  int tokens = 0;                // tokens of this event, the stop token included
  int32_t token = -1;            // which one
  std::vector<float> embedding;  // as the engine gave it
  std::string stop;              // with FinishReason::kStop, the stop string, if it was one
  int cached_tokens = 0;
  int64_t weight_version = 0;
  // A stop string ended the sequence here; the engine does not know yet and is to be told.
  bool cancel_engine = false;
};

class ChoiceDecoder {
 public:
  struct Options {
    bool skip_special_tokens = true;
    bool continues_text = true;  // keep the space that decoders drop at the start of a text
    bool logprobs = false;
    // The token that ends a sequence has its logprobs shown, too, though no text: who scores a
    // continuation counts on one entry per token.
    bool ending_logprobs = false;
    std::vector<std::string> stop;
    int min_tokens = 0;  // stop strings are looked for in the text behind as many tokens
  };
  ChoiceDecoder(const Tokenizer& tokenizer, Options options);

  // After a delta with finish != kNone further events are ignored (an empty delta).
  ChoiceDelta Push(TokenEvent event);
  bool finished() const { return finished_; }

 private:
  // Moves what is certain of pending_ into the delta; true when a stop string was found.
  bool Release(bool last, ChoiceDelta* delta);
  size_t HeldBack() const;

  StreamDecoder decoder_;
  Options options_;
  std::string pending_;                // decoded, not handed out
  std::vector<LogprobEntry> entries_;  // of tokens that begin in pending_
  size_t released_ = 0;                // bytes handed out
  size_t unsearched_ = 0;              // bytes of pending_ that no stop string may begin in
  int tokens_ = 0;
  bool finished_ = false;
};

}  // namespace cadre
