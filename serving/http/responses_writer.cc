// /v1/responses: one message with one text part; a stream is of typed, numbered events.
#include <utility>

#include "serving/http/answer_json.h"

namespace cadre {
namespace {

class ResponsesWriter : public AnswerWriter {
 public:
  using AnswerWriter::AnswerWriter;

  std::string Whole() const override { return Dump(Response(choices()[0].text)); }

  std::string StreamEnd() override {
    std::string events = Typed("response.output_text.done", At({{"text", text_}}));
    events += Typed("response.content_part.done", At({{"part", Part(text_)}}));
    events +=
        Typed("response.output_item.done", {{"output_index", 0}, {"item", Item(Status(), &text_)}});
    events += Typed(std::string("response.") + Status(), {{"response", Response(text_)}});
    return events;
  }

  std::string StreamError(const ApiError& error) override {
    auto text_or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
    return Typed("error", {{"code", text_or_null(error.code)},
                           {"message", error.message},
                           {"param", text_or_null(error.param)}});
  }

 private:
  std::string Events(size_t, const ChoiceDelta& delta, bool first) override {
    std::string events;
    if (first) {
      events += Typed("response.created", {{"response", Response("")}});
      events += Typed("response.in_progress", {{"response", Response("")}});
      events += Typed("response.output_item.added",
                      {{"output_index", 0}, {"item", Item("in_progress", nullptr)}});
      events += Typed("response.content_part.added", At({{"part", Part("")}}));
    }
    text_ += delta.text;
    if (!delta.text.empty()) {
      events += Typed("response.output_text.delta", At({{"delta", delta.text}}));
    }
    return events;
  }

  std::string Typed(const std::string& type, Json fields) {
    Json event = {{"type", type}, {"sequence_number", next_++}};
    event.update(fields);
    return "event: " + type + "\n" + DataEvent(event);
  }

  // Of the only part of the only item.
  Json At(Json fields) const {
    Json event = {{"item_id", ItemId()}, {"output_index", 0}, {"content_index", 0}};
    event.update(fields);
    return event;
  }

  std::string ItemId() const { return "msg_" + facts().id.substr(facts().id.find('_') + 1); }
  static Json Part(const std::string& text) {
    return {{"type", "output_text"}, {"text", text}, {"annotations", Json::array()}};
  }
  Json Item(const char* status, const std::string* text) const {
    return {{"type", "message"},
            {"id", ItemId()},
            {"status", status},
            {"role", "assistant"},
            {"content", text ? Json::array({Part(*text)}) : Json::array()}};
  }

  const char* Status() const {
    switch (choices()[0].finish) {
      case FinishReason::kNone:
        return "in_progress";
      case FinishReason::kLength:
        return "incomplete";
      default:
        return "completed";
    }
  }

  Json Usage() const {
    const AnswerUsage usage = CountUsage();
    return {{"input_tokens", usage.prompt},
            {"input_tokens_details", {{"cached_tokens", usage.cached}}},
            {"output_tokens", usage.completion},
            {"output_tokens_details", {{"reasoning_tokens", 0}}},
            {"total_tokens", usage.prompt + usage.completion}};
  }

  Json Response(const std::string& text) const {
    const FinishReason finish = choices()[0].finish;
    const bool ended = finish != FinishReason::kNone;
    Json body = {
        {"id", facts().id},       {"object", "response"},    {"created_at", facts().created},
        {"status", Status()},     {"error", nullptr},        {"incomplete_details", nullptr},
        {"model", facts().model}, {"output", Json::array()}, {"usage", nullptr}};
    if (finish == FinishReason::kLength) {
      body["incomplete_details"] = {{"reason", "max_output_tokens"}};
    }
    if (ended) {
      body["output"].push_back(Item(Status(), &text));
      body["usage"] = Usage();
    }
    body.update(Json::parse(facts().repeated));
    return body;
  }

  std::string text_;  // of a stream so far
  int next_ = 0;
};

}  // namespace

std::unique_ptr<AnswerWriter> MakeResponsesWriter(const Tokenizer& tokenizer, AnswerFacts facts) {
  return std::make_unique<ResponsesWriter>(tokenizer, std::move(facts));
}

}  // namespace cadre
