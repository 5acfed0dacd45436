// /v1/chat/completions
#include <utility>

#include "serving/http/answer_json.h"

namespace cadre {
namespace {

class ChatWriter : public AnswerWriter {
 public:
  ChatWriter(const Tokenizer& tokenizer, AnswerFacts facts)
      : AnswerWriter(tokenizer, std::move(facts)) {
    for (size_t i = 0; i < choices().size(); ++i) parsers_.emplace_back(this->facts().message);
  }

  std::string Whole() const override;
  std::string StreamEnd() override;
  std::string StreamError(const ApiError& error) override {
    return "data: " + error.Body() + "\n\n" + kDoneEvent;
  }

 private:
  std::string Events(size_t index, const ChoiceDelta& delta, bool first) override;
  Json Head(const char* object) const;
  std::string Chunk(Json choice) const;
  // A chunk's entry with nothing but a delta.
  static Json Entry(size_t index, Json delta);
  Json CallJson(size_t choice, size_t index, const ToolCall& call) const;
  // The whole answer of a choice.
  Json WholeChoice(size_t index) const;

  std::vector<MessageParser> parsers_;  // of streams, by choice
};

// A message that ends by itself and has calls ends for them.
Json ChatFinish(FinishReason finish, bool calls) {
  return calls && finish == FinishReason::kStop ? Json("tool_calls") : FinishJson(finish);
}

Json ChatWriter::Head(const char* object) const {
  return {{"id", facts().id},
          {"object", object},
          {"created", facts().created},
          {"model", facts().model},
          {"system_fingerprint", facts().fingerprint}};
}

Json ChatWriter::Entry(size_t index, Json delta) {
  return {{"index", index},
          {"delta", std::move(delta)},
          {"logprobs", nullptr},
          {"finish_reason", nullptr}};
}

std::string ChatWriter::Chunk(Json choice) const {
  Json chunk = Head("chat.completion.chunk");
  const bool starts = choice["delta"].contains("role");
  if (starts && facts().return_token_ids) chunk["prompt_token_ids"] = *facts().prompts[0].ids;
  chunk["choices"] = Json::array({std::move(choice)});
  if (facts().continuous_usage) chunk["usage"] = UsageJson(CountUsage());
  return DataEvent(chunk);
}

Json ChatWriter::CallJson(size_t choice, size_t index, const ToolCall& call) const {
  return {{"id", ToolCallId(facts().id, choice, index)},
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
}

std::string ChatWriter::Events(size_t index, const ChoiceDelta& delta, bool first) {
  std::string events;
  if (first) {
    events = Chunk(Entry(index, {{"role", "assistant"}, {"content", ""}}));
  }
  const bool last = delta.finish != FinishReason::kNone;
  const size_t calls_before = parsers_[index].calls();
  const MessageParser::Output said = parsers_[index].Push(delta.text, last);
  if (!said.reasoning.empty()) {
    events += Chunk(Entry(index, {{"reasoning_content", said.reasoning}}));
  }
  // The name first, then what it is called with.
  for (size_t i = 0; i < said.calls.size(); ++i) {
    Json begin = {{"index", calls_before + i}};
    begin.update(CallJson(index, calls_before + i, said.calls[i]));
    begin["function"]["arguments"] = "";
    const Json rest = {{"index", calls_before + i},
                       {"function", {{"arguments", said.calls[i].arguments}}}};
    for (const Json& part : {begin, rest}) {
      events += Chunk(Entry(index, {{"tool_calls", Json::array({part})}}));
    }
  }
  const bool logprobs = facts().logprobs && !delta.logprobs.empty();
  if (said.content.empty() && !logprobs && !last) return events;
  Json content = Json::object();
  if (!said.content.empty() || logprobs) content["content"] = said.content;
  Json choice = Entry(index, std::move(content));
  if (logprobs) choice["logprobs"] = ChatLogprobs(tokenizer(), delta.logprobs);
  choice["finish_reason"] = ChatFinish(delta.finish, parsers_[index].calls() > 0);
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

Json ChatWriter::WholeChoice(size_t index) const {
  const Choice& choice = choices()[index];
  MessageParser parser(facts().message);
  MessageParser::Output said = parser.Push(choice.text, true);
  Json message = {{"role", "assistant"}, {"content", said.content}};
  if (!said.reasoning.empty()) message["reasoning_content"] = said.reasoning;
  if (!said.calls.empty()) {
    if (said.content.empty()) message["content"] = nullptr;
    message["tool_calls"] = Json::array();
    for (size_t i = 0; i < said.calls.size(); ++i) {
      message["tool_calls"].push_back(CallJson(index, i, said.calls[i]));
    }
  }
  Json entry = {
      {"index", index},
      {"message", std::move(message)},
      {"logprobs", facts().logprobs ? ChatLogprobs(tokenizer(), choice.logprobs) : Json()},
      {"finish_reason", ChatFinish(choice.finish, !said.calls.empty())}};
  if (facts().return_token_ids) entry["token_ids"] = choice.token_ids;
  return entry;
}

std::string ChatWriter::Whole() const {
  Json body = Head("chat.completion");
  body["choices"] = Json::array();
  for (size_t i = 0; i < choices().size(); ++i) {
    body["choices"].push_back(WholeChoice(i));
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
