// /tokenize, /detokenize and the small answers about the server itself.
#include <gtest/gtest.h>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

using TokenizeEndpointsTest = HttpServerTest;

TEST_F(TokenizeEndpointsTest, Prompts) {
  Json body = Post("/tokenize", {{"prompt", "a\xc3\xa9<|end|>"}}).json();
  EXPECT_EQ(body["count"], 10);  // a client's special text is text
  EXPECT_EQ(body["max_model_len"], 200);
  EXPECT_EQ(body["tokens"][0], 97);
  EXPECT_EQ(body["tokens"][1], 0xc3);
  EXPECT_TRUE(body["token_strs"].is_null());
  body =
      Post("/tokenize", {{"model", "tiny"}, {"prompt", "a b"}, {"return_token_strs", true}}).json();
  EXPECT_EQ(body["token_strs"], (Json{"a", "\xc4\xa0", "b"}));
  EXPECT_EQ(Post("/tokenize", {{"prompt", ""}}).json()["tokens"], Json::array());
}

TEST_F(TokenizeEndpointsTest, MessagesAreWhatTheChatWouldRead) {
  const Json messages = {{{"role", "user"}, {"content", "hi"}}};
  Json body = Post("/tokenize", {{"messages", messages}}).json();
  ASSERT_EQ(Chat({{"messages", messages}}).status, 200);
  EXPECT_EQ(body["tokens"], engine_.prompts().at(0));
  EXPECT_EQ(body["count"], 20);
  body = Post("/tokenize", {{"messages", messages}, {"add_generation_prompt", false}}).json();
  EXPECT_EQ(body["count"], 9);
}

TEST_F(TokenizeEndpointsTest, Detokenize) {
  EXPECT_EQ(Post("/detokenize", {{"tokens", {97, 0xc3, 0xa9, 257}}}).json(),
            (Json{{"prompt", "a\xc3\xa9<|start|>"}}));
  EXPECT_EQ(Post("/detokenize", {{"tokens", Json::array()}}).json(), (Json{{"prompt", ""}}));
  EXPECT_EQ(Post("/detokenize", {{"tokens", {0xc3}}}).json(), (Json{{"prompt", "\xef\xbf\xbd"}}));
}

TEST_F(TokenizeEndpointsTest, WhatIsWrittenIsBounded) {
  EXPECT_EQ(Post("/detokenize", {{"tokens", std::vector<int>(200, 'a')}}).json()["prompt"],
            std::string(200, 'a'));
  Reply reply = Post("/detokenize", {{"tokens", std::vector<int>(201, 'a')}});
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.json()["error"]["param"], "tokens");
  EXPECT_NE(reply.body.find("at most 200"), std::string::npos) << reply.body.substr(0, 300);
  // A text may be far longer than the context.
  EXPECT_EQ(Post("/tokenize", {{"prompt", std::string(1 << 20, 'a')}}).json()["count"], 1 << 20);
  const std::string longer(1 + (1 << 20), 'a');
  reply = Post("/tokenize", {{"prompt", longer}});
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.json()["error"]["param"], "prompt");
  EXPECT_NE(reply.body.find("allowed are 1048576"), std::string::npos) << reply.body.substr(0, 300);
  EXPECT_EQ(Post("/tokenize", {{"prompt", longer}, {"truncate_prompt_tokens", 3}}).json()["count"],
            3);
}

TEST_F(TokenizeEndpointsTest, BadRequestsNameTheField) {
  const std::pair<Json, const char*> bad[] = {
      {Json::object(), "prompt"},
      {{{"prompt", {1, 2}}}, "prompt"},
      {{{"prompt", "a"}, {"messages", {{{"role", "user"}, {"content", "hi"}}}}}, "prompt"},
      {{{"messages", Json::array()}}, "messages"},
      {{{"messages", {{{"role", "tool"}, {"content", ""}}}}}, "messages"},
      {{{"prompt", "a"}, {"return_token_strs", "x"}}, "return_token_strs"}};
  for (const auto& [body, param] : bad) {
    Reply reply = Post("/tokenize", body);
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_EQ(reply.json()["error"]["param"], param) << reply.body;
  }
  for (const Json& body : {Json::object(), Json{{"tokens", "x"}}, Json{{"tokens", {-1}}},
                           Json{{"tokens", {258}}}, Json{{"tokens", {1.5}}}}) {
    Reply reply = Post("/detokenize", body);
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_EQ(reply.json()["error"]["param"], "tokens") << reply.body;
  }
  EXPECT_EQ(Post("/tokenize", {{"model", "other"}, {"prompt", "a"}}).status, 404);
  EXPECT_EQ(Get("/tokenize").status, 405);
}

TEST_F(TokenizeEndpointsTest, VersionAndModels) {
  EXPECT_EQ(Get("/version").json(), (Json{{"version", "1.2.3"}}));
  EXPECT_EQ(Get("/v1/models").json()["data"][0]["max_model_len"], 200);
}

}  // namespace
}  // namespace cadre
