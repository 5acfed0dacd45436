// /v1/completions
#include <utility>

#include "serving/http/answer_json.h"

namespace cadre {
namespace {

class CompletionWriter : public AnswerWriter {
 public:
  using AnswerWriter::AnswerWriter;

  std::string Whole() const override;
  std::string StreamEnd() override;
  std::string StreamError(const ApiError& error) override {
    return "data: " + error.Body() + "\n\n" + kDoneEvent;
  }

 private:
  std::string Events(size_t index, const ChoiceDelta& delta, bool first) override;
  Json Head() const;
};

Json CompletionWriter::Head() const {
  return {{"id", facts().id},
          {"object", "text_completion"},
          {"created", facts().created},
          {"model", facts().model},
          {"system_fingerprint", facts().fingerprint}};
}

std::string CompletionWriter::Events(size_t index, const ChoiceDelta& delta, bool first) {
  const bool logprobs = facts().logprobs && !delta.logprobs.empty();
  // The prompt's ids go out at once, whether or not there is text yet.
  const bool starts = first && facts().return_token_ids;
  if (delta.text.empty() && !logprobs && !starts && delta.finish == FinishReason::kNone) return "";
  Json chunk = Head();
  Json choice = {{"index", index},
                 {"text", delta.text},
                 {"logprobs", logprobs ? CompletionLogprobs(tokenizer(), delta.logprobs) : Json()},
                 {"finish_reason", FinishJson(delta.finish)}};
  if (starts) choice["prompt_token_ids"] = *PromptOf(index).ids;
  if (facts().return_token_ids) choice["token_ids"] = TakeTokenIds(index);
  chunk["choices"] = Json::array({std::move(choice)});
  if (facts().continuous_usage) chunk["usage"] = UsageJson(CountUsage());
  return DataEvent(chunk);
}

std::string CompletionWriter::StreamEnd() {
  if (!facts().include_usage) return kDoneEvent;
  Json chunk = Head();
  chunk["choices"] = Json::array();
  chunk["usage"] = UsageJson(CountUsage());
  return DataEvent(chunk) + kDoneEvent;
}

std::string CompletionWriter::Whole() const {
  Json body = Head();
  body["choices"] = Json::array();
  for (size_t i = 0; i < choices().size(); ++i) {
    const Choice& choice = choices()[i];
    Json entry = {
        {"index", i},
        {"text", choice.text},
        {"logprobs", facts().logprobs ? CompletionLogprobs(tokenizer(), choice.logprobs) : Json()},
        {"finish_reason", FinishJson(choice.finish)}};
    if (facts().return_token_ids) {
      entry["prompt_token_ids"] = *PromptOf(i).ids;
      entry["token_ids"] = choice.token_ids;
    }
    if (facts().prompt_logprobs >= 0) {
      entry["prompt_logprobs"] = PromptLogprobs(tokenizer(), choice.prompt_logprobs,
                                                choice.prompt_top, facts().prompt_logprobs);
    }
    body["choices"].push_back(std::move(entry));
  }
  body["usage"] = UsageJson(CountUsage());
  return Dump(body);
}

}  // namespace

std::unique_ptr<AnswerWriter> MakeCompletionWriter(const Tokenizer& tokenizer, AnswerFacts facts) {
  return std::make_unique<CompletionWriter>(tokenizer, std::move(facts));
}

}  // namespace cadre
