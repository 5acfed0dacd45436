// /v1/messages: a content block of text, and one of thoughts before it where there are some; a
// stream is of named events and has no [DONE].
#include <utility>

#include "serving/http/answer_json.h"
#include "serving/http/messages_error.h"
#include "serving/http/text_answer.h"

namespace cadre {
namespace {

const char* ErrorType(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 408:
      return "timeout_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

std::string NamedEvent(const Json& json) {
  return "event: " + json["type"].get<std::string>() + "\n" + DataEvent(json);
}

enum class Block { kNone, kThinking, kText };

class MessagesWriter : public AnswerWriter {
 public:
  MessagesWriter(const Tokenizer& tokenizer, AnswerFacts facts)
      : AnswerWriter(tokenizer, std::move(facts)), parser_(this->facts().message) {}

  std::string Whole() const override {
    Json message = Message();
    MessageParser parser(facts().message);
    const MessageParser::Output said = parser.Push(choices()[0].text, true);
    Json& content = message["content"];
    if (!said.reasoning.empty()) content.push_back(BlockJson(Block::kThinking, said.reasoning));
    if (!said.content.empty() || content.empty()) {
      content.push_back(BlockJson(Block::kText, said.content));
    }
    message.update(Ending());
    message["usage"] = Usage();
    return Dump(message);
  }

  std::string StreamEnd() override {
    std::string events = index_ == 0 ? Open(Block::kText) : "";
    events += Close();
    return events +
           NamedEvent({{"type", "message_delta"}, {"delta", Ending()}, {"usage", Usage()}}) +
           NamedEvent({{"type", "message_stop"}});
  }

  std::string StreamError(const ApiError& error) override {
    return "event: error\ndata: " + MessagesErrorBody(error) + "\n\n";
  }

 private:
  Json Message() const {
    return {{"id", facts().id},        {"type", "message"},        {"role", "assistant"},
            {"model", facts().model},  {"content", Json::array()}, {"stop_reason", nullptr},
            {"stop_sequence", nullptr}};
  }

  Json Ending() const {
    const Choice& choice = choices()[0];
    if (choice.finish == FinishReason::kLength) {
      return {{"stop_reason", "max_tokens"}, {"stop_sequence", nullptr}};
    }
    if (choice.stop.empty()) return {{"stop_reason", "end_turn"}, {"stop_sequence", nullptr}};
    return {{"stop_reason", "stop_sequence"}, {"stop_sequence", choice.stop}};
  }

  // As Anthropic counts: input_tokens are those that came from no cache.
  Json Usage() const {
    const AnswerUsage usage = CountUsage();
    return {{"input_tokens", usage.prompt - usage.cached},
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", usage.cached},
            {"output_tokens", usage.completion}};
  }

  // Thoughts are not signed: nobody but their client takes them back.
  static Json BlockJson(Block kind, const std::string& text) {
    if (kind == Block::kText) return {{"type", "text"}, {"text", text}};
    return {{"type", "thinking"}, {"thinking", text}, {"signature", ""}};
  }

  // Ends the block before; nothing where it is open already.
  std::string Open(Block kind) {
    if (open_ == kind) return "";
    const std::string before = Close();
    open_ = kind;
    return before + NamedEvent({{"type", "content_block_start"},
                                {"index", index_++},
                                {"content_block", BlockJson(kind, "")}});
  }

  std::string Close() {
    if (std::exchange(open_, Block::kNone) == Block::kNone) return "";
    return NamedEvent({{"type", "content_block_stop"}, {"index", index_ - 1}});
  }

  std::string Piece(Block kind, const std::string& text) {
    if (text.empty()) return "";
    const std::string opened = Open(kind);
    const char* name = kind == Block::kText ? "text" : "thinking";
    const Json delta = {{"type", fmt::format("{}_delta", name)}, {name, text}};
    return opened +
           NamedEvent({{"type", "content_block_delta"}, {"index", index_ - 1}, {"delta", delta}});
  }

  std::string Events(size_t, const ChoiceDelta& delta, bool first) override {
    std::string events;
    if (first) {
      Json message = Message();
      message["usage"] = Usage();
      events = NamedEvent({{"type", "message_start"}, {"message", std::move(message)}});
      if (!facts().message.reasoning) events += Open(Block::kText);
    }
    const MessageParser::Output said =
        parser_.Push(delta.text, delta.finish != FinishReason::kNone);
    events += Piece(Block::kThinking, said.reasoning);
    return events + Piece(Block::kText, said.content);
  }

  // Of a stream.
  MessageParser parser_;
  Block open_ = Block::kNone;
  int index_ = 0;  // blocks that were opened
};

}  // namespace

std::string MessagesErrorBody(const ApiError& error) {
  return Dump({{"type", "error"},
               {"error", {{"type", ErrorType(error.status)}, {"message", error.message}}}});
}

std::unique_ptr<AnswerWriter> MakeMessagesWriter(const Tokenizer& tokenizer, AnswerFacts facts) {
  return std::make_unique<MessagesWriter>(tokenizer, std::move(facts));
}

std::optional<ApiError> CountTokensBody(const TextAnswerInput& input, std::string* body) {
  *body = Dump({{"input_tokens", input.prompts[0].ids->size()}});
  return std::nullopt;
}

}  // namespace cadre
