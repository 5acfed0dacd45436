// What well-formed requests get over HTTP: texts, streams, stops, logprobs.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

using OpenAiAnswerTest = HttpServerTest;

TEST_F(OpenAiAnswerTest, WholeChatAnswer) {
  Json body = Chat({{"seed", 5}}).json();
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["id"].get<std::string>().substr(0, 9), "chatcmpl-");
  EXPECT_EQ(body["choices"][0]["message"], (Json{{"role", "assistant"}, {"content", kReply}}));
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["system_fingerprint"], "cadre-w7");
  // <|start|> user:hi <|end|> <|start|> assistant:
  EXPECT_EQ(body["usage"]["prompt_tokens"], 20);
  EXPECT_EQ(body["usage"]["completion_tokens"], int(sizeof(kReply)));
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
  EXPECT_EQ(engine_.seeds(), std::vector<uint64_t>{5});
}

TEST_F(OpenAiAnswerTest, SpecialTextOfUsersStaysText) {
  Chat({{"messages", {{{"role", "user"}, {"content", "<|end|>"}}}}});
  std::vector<int32_t> prompt = engine_.prompts().at(0);
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), 257), 2);
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), kEnd), 1);  // the template's own
}

TEST_F(OpenAiAnswerTest, StreamedChatFollowsTheRules) {
  for (int n : {1, 3}) {
    Json options = {{"stream", true}, {"n", n}, {"stream_options", {{"include_usage", true}}}};
    std::vector<Json> events = Events(Chat(options));
    ASSERT_GT(events.size(), 4u);
    EXPECT_EQ(events.back(), "[DONE]");
    events.pop_back();
    EXPECT_EQ(events.back()["choices"], Json::array());
    EXPECT_EQ(events.back()["usage"]["completion_tokens"], n * int(sizeof(kReply)));
    EXPECT_EQ(events.back()["usage"]["prompt_tokens"], 20);
    events.pop_back();
    std::map<int, std::string> texts;
    std::map<int, int> roles, finishes;
    for (const Json& event : events) {
      EXPECT_EQ(event["id"], events[0]["id"]);
      EXPECT_FALSE(event.contains("usage"));
      const Json& choice = event["choices"][0];
      int index = choice["index"];
      EXPECT_EQ(choice["delta"].contains("role"), roles[index] == 0);
      roles[index] += choice["delta"].contains("role");
      finishes[index] += !choice["finish_reason"].is_null();
      texts[index] += choice["delta"].value("content", "");
    }
    for (int i = 0; i < n; ++i) {
      EXPECT_EQ(texts[i], kReply);
      EXPECT_EQ(roles[i], 1);
      EXPECT_EQ(finishes[i], 1);
    }
  }
  for (const Json& event : Events(Chat({{"stream", true}}))) {
    EXPECT_FALSE(event.is_object() && event.contains("usage"));
  }
}

TEST_F(OpenAiAnswerTest, StopStringsCrossTokens) {
  for (bool stream : {false, true}) {
    size_t cancelled = engine_.num_cancelled();
    Reply reply = Chat({{"stop", {"stop", "nothing"}}, {"stream", stream}});
    std::string text, finish;
    if (stream) {
      for (const Json& event : Events(reply)) {
        if (!event.is_object()) continue;
        text += event["choices"][0]["delta"].value("content", "");
        if (event["choices"][0]["finish_reason"].is_string())
          finish = event["choices"][0]["finish_reason"];
      }
    } else {
      text = reply.json()["choices"][0]["message"]["content"];
      finish = reply.json()["choices"][0]["finish_reason"];
    }
    EXPECT_EQ(text, "H\xc3\xa9llo w\xc3\xb6rld, ");
    EXPECT_EQ(finish, "stop");
    engine_.WaitUntilRunning(0);
    EXPECT_GE(engine_.num_cancelled(), cancelled);
  }
}

TEST_F(OpenAiAnswerTest, MaxTokensNeverSplitsACharacter) {
  for (bool stream : {false, true}) {
    Reply reply = Complete({{"max_tokens", 2}, {"stream", stream}});
    Json last = stream ? Events(reply).at(Events(reply).size() - 2) : reply.json();
    EXPECT_EQ(last["choices"][0]["finish_reason"], "length");
    std::string text;
    if (!stream) text = last["choices"][0]["text"];
    for (const Json& event : Events(reply)) {
      if (event.is_object()) text += event["choices"][0]["text"].get<std::string>();
    }
    EXPECT_EQ(text, "H\xef\xbf\xbd");
  }
}

TEST_F(OpenAiAnswerTest, CompletionsPromptsLogprobsAndEcho) {
  Json body = Complete({{"prompt", {"ab", "c"}}, {"n", 2}}).json();
  EXPECT_EQ(body["choices"].size(), 4u);
  EXPECT_EQ(body["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(Complete({{"prompt", {97, 98}}}).json()["choices"][0]["text"], kReply);
  Json echo =
      Complete({{"prompt", "ab"}, {"echo", true}, {"logprobs", 2}, {"max_tokens", 1}}).json();
  EXPECT_EQ(echo["choices"][0]["text"], "abH");
  Json logprobs = echo["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], (Json{"a", "b", "H"}));
  EXPECT_EQ(logprobs["text_offset"], (Json{0, 1, 2}));
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["token_logprobs"][2], -0.5);
  EXPECT_EQ(logprobs["top_logprobs"][2], (Json{{"a", -1.0}, {"b", -2.0}, {"H", -0.5}}));
}

TEST_F(OpenAiAnswerTest, ChatLogprobsSpellTheText) {
  Json choice = Chat({{"logprobs", true}, {"top_logprobs", 1}, {"stop", "w"}}).json()["choices"][0];
  std::string bytes;
  for (const Json& token : choice["logprobs"]["content"]) {
    for (int byte : token["bytes"]) bytes += static_cast<char>(byte);
    EXPECT_EQ(token["top_logprobs"].size(), 1u);
  }
  EXPECT_EQ(bytes, choice["message"]["content"]);
  std::string streamed;
  for (const Json& event : Events(Chat({{"logprobs", true}, {"stop", "w"}, {"stream", true}}))) {
    if (!event.is_object() || event["choices"][0]["logprobs"].is_null()) continue;
    for (const Json& token : event["choices"][0]["logprobs"]["content"]) {
      for (int byte : token["bytes"]) streamed += static_cast<char>(byte);
    }
  }
  EXPECT_EQ(streamed, bytes);
}

TEST_F(OpenAiAnswerTest, SpecialTokensShowOnRequest) {
  const int tokens = sizeof(kReply) + 1;  // the text and two ends
  Json body = {{"ignore_eos", true}, {"max_tokens", tokens}};
  EXPECT_EQ(Complete(body).json()["choices"][0]["text"], kReply);
  body["skip_special_tokens"] = false;
  EXPECT_EQ(Complete(body).json()["choices"][0]["text"], std::string(kReply) + "<|end|><|end|>");
  body = {{"prompt", {97, 257}}, {"echo", true}, {"max_tokens", 1}};
  EXPECT_EQ(Complete(body).json()["choices"][0]["text"], "aH");
  body["skip_special_tokens"] = false;
  EXPECT_EQ(Complete(body).json()["choices"][0]["text"], "a<|start|>H");
}

TEST_F(OpenAiAnswerTest, AFinalMessageIsContinued) {
  Json body = {
      {"messages",
       {{{"role", "user"}, {"content", "hi"}}, {{"role", "assistant"}, {"content", "He"}}}},
      {"continue_final_message", true}};
  EXPECT_EQ(Chat(body).status, 200);
  std::vector<int32_t> prompt = engine_.prompts().at(0);
  EXPECT_EQ(prompt.back(), 'e');
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), kEnd), 1);  // the user's turn ended
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), 257), 2);   // and no third turn began
  body["add_generation_prompt"] = true;
  EXPECT_EQ(Chat(body).status, 400);
}

TEST_F(OpenAiAnswerTest, StreamedCompletionLogprobsAreThoseOfTheWholeAnswer) {
  for (const Json& stop : {Json(nullptr), Json("wö")}) {
    Json fields = {{"logprobs", 2}, {"n", 2}, {"stop", stop}};
    const Json whole = Complete(fields).json()["choices"];
    fields["stream"] = true;
    std::map<int, Json> streamed;
    for (const Json& event : Events(Complete(fields))) {
      if (!event.is_object() || event["choices"][0]["logprobs"].is_null()) continue;
      Json& all = streamed[event["choices"][0]["index"]];
      for (const auto& [name, list] : event["choices"][0]["logprobs"].items()) {
        for (const Json& entry : list) all[name].push_back(entry);
      }
    }
    ASSERT_EQ(streamed.size(), 2u);
    for (const Json& choice : whole) EXPECT_EQ(streamed[choice["index"]], choice["logprobs"]);
  }
}

}  // namespace
}  // namespace cadre
