// /v1/chat/completions
#include <utility>

#include "serving/http/answer_json.h"

namespace cadre {
namespace {

class ChatWriter : public AnswerWriter {
 public:
  using AnswerWriter::AnswerWriter;

  std::string Whole() const override;
  std::string StreamEnd() override;
  std::string StreamError(const ApiError& error) override {
    return "data: " + error.Body() + "\n\n" + kDoneEvent;
  }

 private:
  std::string Events(size_t index, const ChoiceDelta& delta, bool first) override;
  Json Head(const char* object) const;
  std::string Chunk(size_t index, Json delta, Json logprobs, FinishReason finish) const;
};

Json ChatWriter::Head(const char* object) const {
  return {{"id", facts().id},
          {"object", object},
          {"created", facts().created},
          {"model", facts().model},
          {"system_fingerprint", facts().fingerprint}};
}

std::string ChatWriter::Chunk(size_t index, Json delta, Json logprobs, FinishReason finish) const {
  Json chunk = Head("chat.completion.chunk");
  chunk["choices"] = Json::array({{{"index", index},
                                   {"delta", std::move(delta)},
                                   {"logprobs", std::move(logprobs)},
                                   {"finish_reason", FinishJson(finish)}}});
  return DataEvent(chunk);
}

std::string ChatWriter::Events(size_t index, const ChoiceDelta& delta, bool first) {
  std::string events;
  if (first) {
    events = Chunk(index, {{"role", "assistant"}, {"content", ""}}, nullptr, FinishReason::kNone);
  }
  const bool logprobs = facts().logprobs && !delta.logprobs.empty();
  if (delta.text.empty() && !logprobs && delta.finish == FinishReason::kNone) return events;
  Json content = Json::object();
  if (!delta.text.empty() || logprobs) content["content"] = delta.text;
  return events + Chunk(index, std::move(content),
                        logprobs ? ChatLogprobs(tokenizer(), delta.logprobs) : Json(),
                        delta.finish);
}

std::string ChatWriter::StreamEnd() {
  if (!facts().include_usage) return kDoneEvent;
  Json chunk = Head("chat.completion.chunk");
  chunk["choices"] = Json::array();
  chunk["usage"] = UsageJson(CountUsage());
  return DataEvent(chunk) + kDoneEvent;
}

std::string ChatWriter::Whole() const {
  Json body = Head("chat.completion");
  body["choices"] = Json::array();
  for (size_t i = 0; i < choices().size(); ++i) {
    const Choice& choice = choices()[i];
    body["choices"].push_back(
        {{"index", i},
         {"message", {{"role", "assistant"}, {"content", choice.text}}},
         {"logprobs", facts().logprobs ? ChatLogprobs(tokenizer(), choice.logprobs) : Json()},
         {"finish_reason", FinishJson(choice.finish)}});
  }
  body["usage"] = UsageJson(CountUsage());
  return Dump(body);
}

}  // namespace

std::unique_ptr<AnswerWriter> MakeChatWriter(const Tokenizer& tokenizer, AnswerFacts facts) {
  return std::make_unique<ChatWriter>(tokenizer, std::move(facts));
}

}  // namespace cadre
