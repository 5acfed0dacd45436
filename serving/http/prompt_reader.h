// PromptReader: the prompts of a request as token ids. Messages go through the model's template,
// texts through the tokenizer, ids are taken as they are; each must fit the context, unless the
// request has it cut or the answer only counts. Any thread.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "serving/http/answer_writer.h"
#include "serving/http/api_error.h"
#include "serving/http/api_request.h"
#include "serving/http/reasoning.h"
#include "serving/request.h"

namespace cadre {

class PromptReader {
 public:
  // chat_template: null where the model has none. thinks: it may think aloud first. All outlive the
  // reader.
  PromptReader(const Tokenizer& tokenizer, const ChatTemplate* chat_template, bool thinks);

  struct Prompts {
    std::vector<AnswerFacts::Prompt> all;
    Thinking thinking = Thinking::kNone;  // where the template leaves the model
  };
  // counts: the answer is text about the prompts, and no sequence runs.
  std::optional<ApiError> Read(const ApiRequest& request, const ModelInfo& info, bool counts,
                               Prompts* prompts) const;

 private:
  struct Reading;
  std::optional<ApiError> ReadMessages(const Reading& reading, Prompts* prompts) const;
  std::optional<ApiError> ReadPrompt(const Reading& reading, const PromptInput& prompt,
                                     Prompts* prompts) const;
  // A text of so many bytes has more tokens than there is room for, whatever they are.
  bool CannotFit(const Reading& reading, size_t bytes) const;
  // `echo`: what an answer begins with that repeats the prompt.
  void Add(const Reading& reading, std::vector<int32_t> ids, std::string echo,
           Prompts* prompts) const;

  const Tokenizer& tokenizer_;
  const ChatTemplate* chat_template_;
  const bool thinks_;
  const size_t longest_token_;  // bytes
};

}  // namespace cadre
