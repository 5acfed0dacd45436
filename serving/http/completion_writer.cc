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

std::string CompletionWriter::Events(size_t index, const ChoiceDelta& delta, bool) {
  const bool logprobs = facts().logprobs && !delta.logprobs.empty();
  if (delta.text.empty() && !logprobs && delta.finish == FinishReason::kNone) return "";
  Json chunk = Head();
  chunk["choices"] = Json::array(
      {{{"index", index},
        {"text", delta.text},
        {"logprobs", logprobs ? CompletionLogprobs(tokenizer(), delta.logprobs) : Json()},
        {"finish_reason", FinishJson(delta.finish)}}});
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
    body["choices"].push_back(
        {{"index", i},
         {"text", choice.text},
         {"logprobs", facts().logprobs ? CompletionLogprobs(tokenizer(), choice.logprobs) : Json()},
         {"finish_reason", FinishJson(choice.finish)}});
  }
  body["usage"] = UsageJson(CountUsage());
  return Dump(body);
}

}  // namespace

std::unique_ptr<AnswerWriter> MakeCompletionWriter(const Tokenizer& tokenizer, AnswerFacts facts) {
  return std::make_unique<CompletionWriter>(tokenizer, std::move(facts));
}

}  // namespace cadre
