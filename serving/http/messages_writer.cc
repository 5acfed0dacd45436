// /v1/messages: one content block of text; a stream is of named events and has no [DONE].
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

class MessagesWriter : public AnswerWriter {
 public:
  using AnswerWriter::AnswerWriter;

  std::string Whole() const override {
    Json message = Message();
    message["content"].push_back({{"type", "text"}, {"text", choices()[0].text}});
    message.update(Ending());
    message["usage"] = Usage();
    return Dump(message);
  }

  std::string StreamEnd() override {
    return NamedEvent({{"type", "content_block_stop"}, {"index", 0}}) +
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

  std::string Events(size_t, const ChoiceDelta& delta, bool first) override {
    std::string events;
    if (first) {
      Json message = Message();
      message["usage"] = Usage();
      events = NamedEvent({{"type", "message_start"}, {"message", std::move(message)}}) +
               NamedEvent({{"type", "content_block_start"},
                           {"index", 0},
                           {"content_block", {{"type", "text"}, {"text", ""}}}});
    }
    if (delta.text.empty()) return events;
    return events + NamedEvent({{"type", "content_block_delta"},
                                {"index", 0},
                                {"delta", {{"type", "text_delta"}, {"text", delta.text}}}});
  }
};

}  // namespace

std::string MessagesErrorBody(const ApiError& error) {
  return Dump({{"type", "error"},
               {"error", {{"type", ErrorType(error.status)}, {"message", error.message}}}});
}

std::unique_ptr<AnswerWriter> MakeMessagesWriter(const Tokenizer& tokenizer, AnswerFacts facts) {
  return std::make_unique<MessagesWriter>(tokenizer, std::move(facts));
}

std::string CountTokensBody(const TextAnswerInput& input) {
  return Dump({{"input_tokens", input.prompts[0].ids->size()}});
}

}  // namespace cadre
