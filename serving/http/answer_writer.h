// From a request's deltas to the bytes of its answer: one JSON document, or server-sent events
// whose pieces, put together, say the same.
//
// The base keeps the books of the choices: texts, logprobs with offsets in characters, counts, ends
// and errors. Each endpoint's writer, in a file of its own, gives them their shape. An AnswerWriter
// belongs to one answer and one thread at a time; it must not outlive the tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/tokenizer.h"
#include "serving/http/api_error.h"
#include "serving/http/choice_decoder.h"
#include "serving/http/message_parser.h"

namespace cadre {

struct AnswerFacts {
  std::string id;
  int64_t created = 0;  // seconds since 1970
  std::string model;
  std::string fingerprint;  // names the weight version
  bool include_usage = false;
  bool continuous_usage = false;  // in every event of a stream
  bool logprobs = false;
  int echo_logprobs = -1;    // k of the echoed prompt's own, which go in front; -1: none
  int prompt_logprobs = -1;  // k of those in a field of their own; -1: none
  bool return_token_ids = false;
  bool base64 = false;   // of embeddings
  int dimensions = 0;    // of embeddings; 0: all
  std::string repeated;  // a JSON object of the request's fields, for answers that repeat them
  // One entry per prompt; each has n choices, numbered on.
  struct Prompt {
    std::shared_ptr<const std::vector<int32_t>> ids;
    std::string echo;  // text that the answer begins with
  };
  std::vector<Prompt> prompts;
  int n = 1;
  bool echo = false;
  bool echo_skips_special = true;  // whether the echo's text is without special tokens
  MessageFormat message;           // of a chat answer

  size_t num_choices() const { return prompts.size() * static_cast<size_t>(n); }
};

// Tokens of a whole answer. The choices of one prompt share it; it is counted once.
struct AnswerUsage {
  int64_t prompt = 0;
  int64_t completion = 0;
  int64_t cached = 0;     // of the prompts' tokens, those found in the prefix cache
  int64_t reasoning = 0;  // of the completion's, those of thoughts, the closing tag's with them
};

class AnswerWriter {
 public:
  AnswerWriter(const Tokenizer& tokenizer, AnswerFacts facts);
  virtual ~AnswerWriter();
  AnswerWriter(const AnswerWriter&) = delete;
  AnswerWriter& operator=(const AnswerWriter&) = delete;

  // Takes a delta in. For streams returns the events to send now ("data: ...\n\n", maybe none).
  std::string Stream(ChoiceDelta delta);
  void Collect(ChoiceDelta delta);

  // Whether every choice has finished.
  bool done() const { return unfinished_ == 0; }
  // The first failure among the choices; OK without one.
  const absl::Status& error() const { return error_; }

  virtual std::string Whole() const = 0;
  // What ends a stream whose choices have all finished.
  virtual std::string StreamEnd() = 0;
  // What ends a stream that broke off.
  virtual std::string StreamError(const ApiError& error) = 0;

 protected:
  struct Choice {
    std::string text;                    // whole answers only, as are the logprobs
    std::vector<LogprobEntry> logprobs;  // text_offset in characters, the echo counted in
    // Where asked for; of a stream those that no event has told yet.
    std::vector<int32_t> token_ids;
    std::vector<TokenLogprob> prompt_logprobs;
    std::vector<std::vector<TokenLogprob>> prompt_top;
    std::vector<float> embedding;
    FinishReason finish = FinishReason::kNone;
    std::string stop;  // the stop string that ended it, if one did
    int tokens = 0;
    int cached_tokens = 0;
    std::optional<ReasoningSplitter> thoughts;  // of a model that may think
    int thinking_tokens = 0;                    // those in which thoughts were not over yet
    bool begun = false;
    size_t bytes = 0;       // of the sequence's own text so far
    size_t characters = 0;  // of the echo and the text so far
  };

  // The events for one delta of a choice, `delta.text` and its logprobs as Choice has them.
  // `first`: it is the choice's first one.
  virtual std::string Events(size_t index, const ChoiceDelta& delta, bool first) = 0;

  const Tokenizer& tokenizer() const { return tokenizer_; }
  const AnswerFacts& facts() const { return facts_; }
  const std::vector<Choice>& choices() const { return choices_; }
  const AnswerFacts::Prompt& PromptOf(size_t index) const {
    return facts_.prompts[index / static_cast<size_t>(facts_.n)];
  }
  AnswerUsage CountUsage() const;
  // The choice's tokens since the last call.
  std::vector<int32_t> TakeTokenIds(size_t index) {
    return std::exchange(choices_[index].token_ids, {});
  }

 private:
  void Echo(size_t index, ChoiceDelta* delta);
  void Count(Choice* choice, const ChoiceDelta& delta, size_t own_bytes);
  static void CountThoughts(Choice* choice, const ChoiceDelta& delta);
  // Brings a delta into the books; false where the choice had ended before. `first` as in Events.
  bool Take(ChoiceDelta* delta, bool* first);

  const Tokenizer& tokenizer_;
  const AnswerFacts facts_;
  std::vector<Choice> choices_;
  size_t unfinished_;
  absl::Status error_;
};

using MakeWriterFunction = std::unique_ptr<AnswerWriter>(const Tokenizer& tokenizer,
                                                         AnswerFacts facts);
MakeWriterFunction MakeChatWriter;        // /v1/chat/completions
MakeWriterFunction MakeCompletionWriter;  // /v1/completions
MakeWriterFunction MakeEmbeddingsWriter;  // /v1/embeddings
MakeWriterFunction MakeMessagesWriter;    // /v1/messages
MakeWriterFunction MakeResponsesWriter;   // /v1/responses

}  // namespace cadre
