// /v1/messages and its count_tokens
#include <gtest/gtest.h>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

class MessagesEndpointTest : public HttpServerTest {
 protected:
  Reply Ask(Json extra = Json::object(), std::string_view path = "/v1/messages") {
    Json body = {{"model", "tiny"},
                 {"max_tokens", 100},
                 {"messages", {{{"role", "user"}, {"content", "hi"}}}}};
    body.update(extra);
    return Post(path, body);
  }
  std::string Prompt(size_t index) {
    return tokenizer_->Decode(engine_.prompts().at(index), /*skip_special_tokens=*/false);
  }
};

TEST_F(MessagesEndpointTest, WholeMessage) {
  const Json body = Ask().json();
  EXPECT_EQ(body["id"].get<std::string>().substr(0, 4), "msg_");
  EXPECT_EQ(body["type"], "message");
  EXPECT_EQ(body["role"], "assistant");
  EXPECT_EQ(body["model"], "tiny");
  EXPECT_EQ(body["content"], (Json{{{"type", "text"}, {"text", kReply}}}));
  EXPECT_EQ(body["stop_reason"], "end_turn");
  EXPECT_TRUE(body["stop_sequence"].is_null());
  EXPECT_EQ(body["usage"]["input_tokens"], 18);  // 20, of which 2 were cached
  EXPECT_EQ(body["usage"]["cache_read_input_tokens"], 2);
  EXPECT_EQ(body["usage"]["output_tokens"], int(sizeof(kReply)));
}

TEST_F(MessagesEndpointTest, EndsAreNamed) {
  Json body = Ask({{"max_tokens", 1}}).json();
  EXPECT_EQ(body["stop_reason"], "max_tokens");
  body = Ask({{"stop_sequences", {"zzz", " w", "o"}}}).json();
  EXPECT_EQ(body["content"][0]["text"], "H\xc3\xa9ll");
  EXPECT_EQ(body["stop_reason"], "stop_sequence");
  EXPECT_EQ(body["stop_sequence"], "o");
}

TEST_F(MessagesEndpointTest, StreamsSayTheSameInNamedEvents) {
  const Reply reply = Ask({{"stream", true}, {"stop_sequences", {"stop"}}});
  EXPECT_EQ(reply.body.find("[DONE]"), std::string::npos);
  const auto events = NamedEvents(reply);
  ASSERT_GT(events.size(), 6u);
  for (const auto& [name, data] : events) EXPECT_EQ(data["type"], name);
  EXPECT_EQ(events[0].first, "message_start");
  EXPECT_EQ(events[0].second["message"]["usage"]["input_tokens"], 18);
  EXPECT_EQ(events[0].second["message"]["content"], Json::array());
  EXPECT_EQ(events[1].first, "content_block_start");
  std::string text;
  for (size_t i = 2; i + 3 < events.size(); ++i) {
    ASSERT_EQ(events[i].first, "content_block_delta");
    EXPECT_EQ(events[i].second["delta"]["type"], "text_delta");
    text += events[i].second["delta"]["text"].get<std::string>();
  }
  EXPECT_EQ(text, "H\xc3\xa9llo w\xc3\xb6rld, ");
  EXPECT_EQ(events[events.size() - 3].first, "content_block_stop");
  const Json& ending = events[events.size() - 2].second;
  EXPECT_EQ(ending["type"], "message_delta");
  EXPECT_EQ(ending["delta"], (Json{{"stop_reason", "stop_sequence"}, {"stop_sequence", "stop"}}));
  EXPECT_GT(ending["usage"]["output_tokens"], 0);
  EXPECT_EQ(events.back().first, "message_stop");
}

TEST_F(MessagesEndpointTest, SystemTextAndBlocksReachTheTemplate) {
  const Json block = {{"type", "text"}, {"text", "be"}, {"cache_control", {{"type", "ephemeral"}}}};
  ASSERT_EQ(
      Ask({{"system", {block}}, {"messages", {{{"role", "user"}, {"content", {block}}}}}}).status,
      200);
  EXPECT_EQ(Prompt(0), "<|start|>system:be<|end|><|start|>user:be<|end|><|start|>assistant:");
  ASSERT_EQ(
      Ask({{"messages",
            {{{"role", "user"}, {"content", "hi"}}, {{"role", "assistant"}, {"content", "He"}}}}})
          .status,
      200);
  EXPECT_EQ(Prompt(1), "<|start|>user:hi<|end|><|start|>assistant:He");  // to be continued
}

TEST_F(MessagesEndpointTest, CountsTokens) {
  const Json body = Ask({{"max_tokens", nullptr}}, "/v1/messages/count_tokens").json();
  EXPECT_EQ(body, (Json{{"input_tokens", 20}}));
  EXPECT_TRUE(engine_.prompts().empty());
}

TEST_F(MessagesEndpointTest, ErrorsHaveTheirOwnShape) {
  const std::pair<Json, const char*> bad[] = {
      {{{"max_tokens", nullptr}}, "max_tokens"},
      {{{"max_tokens", 0}}, "max_tokens"},
      {{{"max_tokens", 1000}}, "context"},
      {{{"model", nullptr}}, "model"},
      {{{"messages", Json::array()}}, "messages"},
      {{{"messages", {{{"role", "system"}, {"content", "a"}}}}}, "messages[0].role"},
      {{{"messages", {{{"role", "user"}}}}}, "messages[0].content"},
      {{{"messages", {{{"role", "user"}, {"content", {{{"type", "image"}}}}}}}}, "'image'"},
      {{{"system", 5}}, "system"},
      {{{"stop_sequences", {""}}}, "stop_sequences"},
      {{{"tools", {{{"name", "f"}}}}}, "tools"},
      {{{"thinking", {{"type", "enabled"}, {"budget_tokens", 1024}}}}, "thinking"},
      {{{"output_config", {{"format", {{"type", "xml"}}}}}}, "output_config.format"},
      {{{"output_format", {{"type", "json_schema"}}}}, "output_config.format"},
      {{{"temperature", -1}}, "temperature"}};
  for (const auto& [extra, said] : bad) {
    Reply reply = Ask(extra);
    EXPECT_EQ(reply.status, 400) << extra;
    EXPECT_EQ(reply.json()["type"], "error") << reply.body;
    EXPECT_EQ(reply.json()["error"]["type"], "invalid_request_error");
    EXPECT_NE(reply.json()["error"]["message"].get<std::string>().find(said), std::string::npos)
        << reply.body;
  }
  Reply reply = Ask({{"model", "other"}});
  EXPECT_EQ(reply.status, 404);
  EXPECT_EQ(reply.json()["error"]["type"], "not_found_error");
  EXPECT_EQ(Get("/v1/messages").json()["type"], "error");  // 405
  engine_.LimitQueue(0);
  reply = Ask({{"stream", true}});
  EXPECT_EQ(reply.status, 429);
  EXPECT_EQ(reply.json()["error"]["type"], "rate_limit_error");
  EXPECT_NE(reply.head.find("Retry-After"), std::string::npos);
}

TEST_F(MessagesEndpointTest, TheTextHasTheFormThatIsAskedFor) {
  engine_.SetReply(R"(Sure: {"a": 12, "b": [true]})");
  const Json schema = {{"type", "object"},
                       {"properties", {{"a", {{"type", "integer"}}}}},
                       {"required", {"a"}},
                       {"additionalProperties", false}};
  const Json config = {{"format", {{"type", "json_schema"}, {"schema", schema}}}};
  const Json body = Ask({{"output_config", config}}).json();
  const auto text = body["content"][0]["text"].get<std::string>();
  EXPECT_EQ(Json::parse(text, nullptr, false), (Json{{"a", 12}})) << text;
}

TEST_F(MessagesEndpointTest, AStreamThatBreaksEndsWithAnErrorEvent) {
  engine_.FailAt(3);
  const auto events = NamedEvents(Ask({{"stream", true}}));
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back().first, "error");
  EXPECT_EQ(events.back().second["error"],
            (Json{{"type", "api_error"}, {"message", "the engine broke"}}));
}

TEST_F(MessagesEndpointTest, KeysAreAskedForInItsShape) {
  HttpServerOptions options;
  options.api_keys = {"secret"};
  Start(options);
  const Reply reply = Ask();
  EXPECT_EQ(reply.status, 401);
  EXPECT_EQ(reply.json()["error"]["type"], "authentication_error");
}

}  // namespace
}  // namespace cadre
