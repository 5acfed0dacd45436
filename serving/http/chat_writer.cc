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
  std::string Chunk(Json choice) const;
};

Json ChatWriter::Head(const char* object) const {
  return {{"id", facts().id},
          {"object", object},
          {"created", facts().created},
          {"model", facts().model},
          {"system_fingerprint", facts().fingerprint}};
}

std::string ChatWriter::Chunk(Json choice) const {
  Json chunk = Head("chat.completion.chunk");
  const bool starts = choice["delta"].contains("role");
  if (starts && facts().return_token_ids) chunk["prompt_token_ids"] = *facts().prompts[0].ids;
  chunk["choices"] = Json::array({std::move(choice)});
  if (facts().continuous_usage) chunk["usage"] = UsageJson(CountUsage());
  return DataEvent(chunk);
}

std::string ChatWriter::Events(size_t index, const ChoiceDelta& delta, bool first) {
  std::string events;
  if (first) {
    events = Chunk({{"index", index},
                    {"delta", {{"role", "assistant"}, {"content", ""}}},
                    {"logprobs", nullptr},
                    {"finish_reason", nullptr}});
  }
  const bool logprobs = facts().logprobs && !delta.logprobs.empty();
  if (delta.text.empty() && !logprobs && delta.finish == FinishReason::kNone) return events;
  Json content = Json::object();
  if (!delta.text.empty() || logprobs) content["content"] = delta.text;
  Json choice = {{"index", index},
                 {"delta", std::move(content)},
                 {"logprobs", logprobs ? ChatLogprobs(tokenizer(), delta.logprobs) : Json()},
                 {"finish_reason", FinishJson(delta.finish)}};
  if (facts().return_token_ids) choice["token_ids"] = TakeTokenIds(index);
  return events + Chunk(std::move(choice));
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
    Json entry = {
        {"index", i},
        {"message", {{"role", "assistant"}, {"content", choice.text}}},
        {"logprobs", facts().logprobs ? ChatLogprobs(tokenizer(), choice.logprobs) : Json()},
        {"finish_reason", FinishJson(choice.finish)}};
    if (facts().return_token_ids) entry["token_ids"] = choice.token_ids;
    body["choices"].push_back(std::move(entry));
  }
  if (facts().prompt_logprobs >= 0) {
    body["prompt_logprobs"] = PromptLogprobs(tokenizer(), choices()[0].prompt_logprobs,
                                             choices()[0].prompt_top, facts().prompt_logprobs);
  }
  if (facts().return_token_ids) body["prompt_token_ids"] = *facts().prompts[0].ids;
  body["usage"] = UsageJson(CountUsage());
  return Dump(body);
}

}  // namespace

std::unique_ptr<AnswerWriter> MakeChatWriter(const Tokenizer& tokenizer, AnswerFacts facts) {
  return std::make_unique<ChatWriter>(tokenizer, std::move(facts));
}

}  // namespace cadre
