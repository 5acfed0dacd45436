// /v1/responses: a message with one text part, and an item of reasoning before it where there is
// some; a stream is of typed, numbered events.
#include <utility>

#include "serving/http/answer_json.h"

namespace cadre {
namespace {

// An item of the output; each has one part.
struct OutputItem {
  bool reasoning = false;
  std::string text;
};

class ResponsesWriter : public AnswerWriter {
 public:
  ResponsesWriter(const Tokenizer& tokenizer, AnswerFacts facts)
      : AnswerWriter(tokenizer, std::move(facts)), parser_(this->facts().message) {}

  std::string Whole() const override {
    MessageParser parser(facts().message);
    MessageParser::Output said = parser.Push(choices()[0].text, true);
    std::vector<OutputItem> items;
    if (!said.reasoning.empty()) items.push_back({true, std::move(said.reasoning)});
    if (!said.content.empty() || items.empty()) items.push_back({false, std::move(said.content)});
    return Dump(Response(items));
  }

  std::string StreamEnd() override {
    std::string events = items_.empty() ? Open(/*reasoning=*/false) : "";
    events += Close(Status());
    events += Typed(std::string("response.") + Status(), {{"response", Response(items_)}});
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
      events += Typed("response.created", {{"response", Response({})}});
      events += Typed("response.in_progress", {{"response", Response({})}});
      if (!facts().message.reasoning) events += Open(/*reasoning=*/false);
    }
    const MessageParser::Output said =
        parser_.Push(delta.text, delta.finish != FinishReason::kNone);
    events += Piece(/*reasoning=*/true, said.reasoning);
    events += Piece(/*reasoning=*/false, said.content);
    return events;
  }

  // Ends the item before.
  std::string Open(bool reasoning) {
    std::string events = items_.empty() ? "" : Close("completed");
    items_.push_back({reasoning, ""});
    Json item = ItemJson(items_.back(), "in_progress");
    item["content"] = Json::array();
    events += Typed("response.output_item.added",
                    {{"output_index", items_.size() - 1}, {"item", std::move(item)}});
    events += Typed("response.content_part.added", At({{"part", Part(items_.back())}}));
    return events;
  }

  std::string Piece(bool reasoning, const std::string& text) {
    if (text.empty()) return "";
    std::string events;
    if (items_.empty() || items_.back().reasoning != reasoning) events = Open(reasoning);
    items_.back().text += text;
    return events + Typed(TextEvent("delta"), At({{"delta", text}}));
  }

  std::string Close(const char* status) {
    const OutputItem& item = items_.back();
    std::string events = Typed(TextEvent("done"), At({{"text", item.text}}));
    events += Typed("response.content_part.done", At({{"part", Part(item)}}));
    return events + Typed("response.output_item.done",
                          {{"output_index", items_.size() - 1}, {"item", ItemJson(item, status)}});
  }

  std::string TextEvent(const char* what) const {
    return fmt::format("response.{}.{}", items_.back().reasoning ? "reasoning_text" : "output_text",
                       what);
  }

  std::string Typed(const std::string& type, Json fields) {
    Json event = {{"type", type}, {"sequence_number", next_++}};
    event.update(fields);
    return "event: " + type + "\n" + DataEvent(event);
  }

  // Of the only part of the last item.
  Json At(Json fields) const {
    Json event = {{"item_id", ItemId(items_.back())},
                  {"output_index", items_.size() - 1},
                  {"content_index", 0}};
    event.update(fields);
    return event;
  }

  std::string ItemId(const OutputItem& item) const {
    return (item.reasoning ? "rs_" : "msg_") + facts().id.substr(facts().id.find('_') + 1);
  }
  static Json Part(const OutputItem& item) {
    if (item.reasoning) return {{"type", "reasoning_text"}, {"text", item.text}};
    return {{"type", "output_text"}, {"text", item.text}, {"annotations", Json::array()}};
  }
  Json ItemJson(const OutputItem& item, const char* status) const {
    Json json = {{"type", item.reasoning ? "reasoning" : "message"},
                 {"id", ItemId(item)},
                 {"status", status}};
    if (item.reasoning) json["summary"] = Json::array();
    if (!item.reasoning) json["role"] = "assistant";
    json["content"] = Json::array({Part(item)});
    return json;
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
            {"output_tokens_details", {{"reasoning_tokens", usage.reasoning}}},
            {"total_tokens", usage.prompt + usage.completion}};
  }

  Json Response(const std::vector<OutputItem>& items) const {
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
      for (const OutputItem& item : items) {
        body["output"].push_back(ItemJson(item, &item == &items.back() ? Status() : "completed"));
      }
      body["usage"] = Usage();
    }
    body.update(Json::parse(facts().repeated));
    return body;
  }

  // Of a stream so far.
  MessageParser parser_;
  std::vector<OutputItem> items_;
  int next_ = 0;
};

}  // namespace

std::unique_ptr<AnswerWriter> MakeResponsesWriter(const Tokenizer& tokenizer, AnswerFacts facts) {
  return std::make_unique<ResponsesWriter>(tokenizer, std::move(facts));
}

}  // namespace cadre
