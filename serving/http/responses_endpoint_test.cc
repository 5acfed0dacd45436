// /v1/responses
#include <gtest/gtest.h>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

class ResponsesEndpointTest : public HttpServerTest {
 protected:
  Reply Ask(Json extra = Json::object()) {
    Json body = {{"model", "tiny"}, {"input", "hi"}};
    body.update(extra);
    return Post("/v1/responses", body);
  }
  std::string Prompt(size_t index) {
    return tokenizer_->Decode(engine_.prompts().at(index), /*skip_special_tokens=*/false);
  }
};

TEST_F(ResponsesEndpointTest, WholeResponse) {
  const Json body = Ask({{"metadata", {{"a", "b"}}}, {"temperature", 0.5}}).json();
  EXPECT_EQ(body["id"].get<std::string>().substr(0, 5), "resp_");
  EXPECT_EQ(body["object"], "response");
  EXPECT_EQ(body["status"], "completed");
  EXPECT_EQ(body["model"], "tiny");
  ASSERT_EQ(body["output"].size(), 1u);
  EXPECT_EQ(body["output"][0]["type"], "message");
  EXPECT_EQ(body["output"][0]["status"], "completed");
  EXPECT_EQ(body["output"][0]["content"][0]["type"], "output_text");
  EXPECT_EQ(body["output"][0]["content"][0]["text"], kReply);
  EXPECT_EQ(body["usage"]["input_tokens"], 20);
  EXPECT_EQ(body["usage"]["input_tokens_details"]["cached_tokens"], 2);
  EXPECT_EQ(body["usage"]["output_tokens"], int(sizeof(kReply)));
  EXPECT_EQ(body["metadata"], (Json{{"a", "b"}}));
  EXPECT_EQ(body["temperature"], 0.5);
  EXPECT_EQ(body["store"], false);
  EXPECT_TRUE(body["error"].is_null());
  EXPECT_EQ(engine_.requests()[0].sampling.max_tokens, 180);  // the rest of the context
}

TEST_F(ResponsesEndpointTest, AnAnswerCutShortIsIncomplete) {
  const Json body = Ask({{"max_output_tokens", 2}}).json();
  EXPECT_EQ(body["status"], "incomplete");
  EXPECT_EQ(body["incomplete_details"], (Json{{"reason", "max_output_tokens"}}));
  EXPECT_EQ(body["max_output_tokens"], 2);
}

TEST_F(ResponsesEndpointTest, ItemsAndInstructionsReachTheTemplate) {
  const Json input = {
      {{"role", "user"}, {"content", {{{"type", "input_text"}, {"text", "a"}}}}},
      {{"type", "message"},
       {"id", "msg_1"},
       {"role", "assistant"},
       {"content", {{{"type", "output_text"}, {"text", "b"}, {"annotations", Json::array()}}}}},
      {{"role", "user"}, {"content", "c"}}};
  ASSERT_EQ(Ask({{"input", input}, {"instructions", "be"}}).status, 200);
  EXPECT_EQ(Prompt(0),
            "<|start|>system:be<|end|><|start|>user:a<|end|><|start|>assistant:b<|end|>"
            "<|start|>user:c<|end|><|start|>assistant:");
}

TEST_F(ResponsesEndpointTest, StreamsAreNumberedTypedEvents) {
  for (bool whole : {true, false}) {
    Json fields = {{"stream", true}};
    if (!whole) fields["max_output_tokens"] = 4;
    const auto events = NamedEvents(Ask(fields));
    ASSERT_GT(events.size(), 8u);
    std::string text;
    for (size_t i = 0; i < events.size(); ++i) {
      EXPECT_EQ(events[i].second["type"], events[i].first);
      EXPECT_EQ(events[i].second["sequence_number"], i);
      if (events[i].first != "response.output_text.delta") continue;
      EXPECT_EQ(events[i].second["item_id"], events[2].second["item"]["id"]);
      text += events[i].second["delta"].get<std::string>();
    }
    EXPECT_EQ(events[0].first, "response.created");
    EXPECT_EQ(events[0].second["response"]["status"], "in_progress");
    EXPECT_EQ(events[1].first, "response.in_progress");
    EXPECT_EQ(events[2].first, "response.output_item.added");
    EXPECT_EQ(events[3].first, "response.content_part.added");
    const size_t end = events.size();
    EXPECT_EQ(events[end - 4].first, "response.output_text.done");
    EXPECT_EQ(events[end - 4].second["text"], text);
    EXPECT_EQ(events[end - 3].first, "response.content_part.done");
    EXPECT_EQ(events[end - 2].first, "response.output_item.done");
    EXPECT_EQ(events[end - 1].first, whole ? "response.completed" : "response.incomplete");
    const Json& response = events[end - 1].second["response"];
    EXPECT_EQ(response["output"][0]["content"][0]["text"], text);
    EXPECT_EQ(response["usage"]["total_tokens"], whole ? 20 + int(sizeof(kReply)) : 24);
    if (!whole) continue;
    EXPECT_EQ(text, kReply);
  }
}

TEST_F(ResponsesEndpointTest, BadRequestsNameTheField) {
  const std::pair<Json, const char*> bad[] = {
      {{{"input", nullptr}}, "input"},
      {{{"input", Json::array()}}, "input"},
      {{{"input", {{{"type", "item_reference"}, {"id", "x"}}}}}, "input[0]"},
      {{{"input", {{{"role", "tool"}, {"content", "a"}}}}}, "input[0].role"},
      {{{"input", {{{"role", "user"}, {"content", {{{"type", "input_image"}}}}}}}},
       "input[0].content"},
      {{{"max_output_tokens", 0}}, "max_output_tokens"},
      {{{"max_output_tokens", 1000}}, "input"},
      {{{"store", true}}, "store"},
      {{{"previous_response_id", "resp_1"}}, "previous_response_id"},
      {{{"background", true}}, "background"},
      {{{"tools", {{{"type", "web_search"}}}}}, "tools"},
      {{{"tool_choice", "required"}}, "tool_choice"},
      {{{"text", "json"}}, "text"},
      {{{"text", {{"format", "json"}}}}, "text.format"},
      {{{"text", {{"format", {{"type", "xml"}}}}}}, "text.format"},
      {{{"text", {{"format", {{"type", "json_schema"}}}}}}, "text.format"},
      {{{"text", {{"format", {{"type", "json_schema"}, {"schema", {{"type", "x"}}}}}}}},
       "text.format"},
      {{{"reasoning", {{"effort", "low"}}}}, "reasoning"},
      {{{"truncation", "auto"}}, "truncation"},
      {{{"include", {"message.output_text.logprobs"}}}, "include"}};
  for (const auto& [extra, param] : bad) {
    Reply reply = Ask(extra);
    EXPECT_EQ(reply.status, 400) << extra;
    EXPECT_EQ(reply.json()["error"]["param"], param) << reply.body;
  }
  const Json fine = {{"store", false},
                     {"truncation", "disabled"},
                     {"background", false},
                     {"text", {{"format", {{"type", "text"}}}}},
                     {"tools", Json::array()},
                     {"tool_choice", "auto"},
                     {"user", "me"}};
  EXPECT_EQ(Ask(fine).status, 200);
}

TEST_F(ResponsesEndpointTest, TheTextHasTheFormThatIsAskedFor) {
  engine_.SetReply(R"(Sure: {"a": 12, "b": [true]})");
  const Json schema = {{"type", "object"},
                       {"properties", {{"a", {{"type", "integer"}}}}},
                       {"required", {"a"}},
                       {"additionalProperties", false}};
  const Json asked = {{"type", "json_schema"}, {"name", "n"}, {"strict", true}, {"schema", schema}};
  const std::pair<Json, Json> cases[] = {
      {{{"type", "json_object"}}, {{"a", 12}, {"b", {true}}}},
      {asked, {{"a", 12}}},
  };
  for (const auto& [format, want] : cases) {
    const Json body = Ask({{"text", {{"format", format}}}}).json();
    const auto text = body["output"][0]["content"][0]["text"].get<std::string>();
    EXPECT_EQ(Json::parse(text, nullptr, false), want) << text;
    EXPECT_EQ(body["text"]["format"], format);
  }
}

TEST_F(ResponsesEndpointTest, AStreamThatBreaksEndsWithAnErrorEvent) {
  engine_.FailAt(3);
  const auto events = NamedEvents(Ask({{"stream", true}}));
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back().first, "error");
  EXPECT_EQ(events.back().second["message"], "the engine broke");
}

}  // namespace
}  // namespace cadre
