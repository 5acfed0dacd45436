// The bodies that answer completion requests: one JSON document, or server-sent events whose
// pieces, put together, say the same.
//
// An AnswerWriter belongs to one answer and one thread at a time; it must not outlive the
// tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/tokenizer.h"
#include "serving/http/api_error.h"
#include "serving/http/choice_decoder.h"

namespace cadre {

struct AnswerFacts {
  std::string id;
  int64_t created = 0;  // seconds since 1970
  std::string model;
  std::string fingerprint;  // names the weight version
  bool chat = false;
  bool include_usage = false;
  bool logprobs = false;
  int top_logprobs = 0;
  // One entry per prompt; each has n choices, numbered on.
  struct Prompt {
    std::shared_ptr<const std::vector<int32_t>> ids;
    std::string echo;  // text that the answer begins with
  };
  std::vector<Prompt> prompts;
  int n = 1;
  bool echo = false;

  size_t num_choices() const { return prompts.size() * static_cast<size_t>(n); }
};

class AnswerWriter {
 public:
  AnswerWriter(const Tokenizer& tokenizer, AnswerFacts facts);
  ~AnswerWriter();

  // Takes a delta in. For streams returns the events to send now ("data: ...\n\n", maybe none).
  std::string Stream(ChoiceDelta delta);
  void Collect(ChoiceDelta delta);

  // Whether every choice has finished.
  bool done() const { return unfinished_ == 0; }
  // The first failure among the choices; OK without one.
  const absl::Status& error() const { return error_; }

  std::string StreamEnd() const;  // usage where asked, and "data: [DONE]\n\n"
  static std::string StreamError(const ApiError& error);  // its event and "data: [DONE]\n\n"
  std::string Whole() const;

 private:
  struct Choice;
  struct Usage;
  void Count(Choice* choice, const ChoiceDelta& delta);
  Usage CountUsage() const;
  void Begin(size_t index, ChoiceDelta* delta);

  const Tokenizer& tokenizer_;
  const AnswerFacts facts_;
  std::vector<std::unique_ptr<Choice>> choices_;
  size_t unfinished_;
  absl::Status error_;
};

// /v1/models.
std::string ModelsBody(const std::vector<std::string>& names, int64_t created, int max_context);

}  // namespace cadre
