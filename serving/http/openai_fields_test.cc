// Fields of OpenAI's endpoints beyond the plain ones: what reaches the engine, what comes back.
#include <gtest/gtest.h>

#include <map>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

using OpenAiFieldsTest = HttpServerTest;

TEST_F(OpenAiFieldsTest, SamplingFieldsReachTheEngine) {
  Json fields = {{"temperature", 0.5},
                 {"top_k", 7},
                 {"top_p", 0.25},
                 {"min_p", 0.125},
                 {"frequency_penalty", 0.5},
                 {"presence_penalty", -1.5},
                 {"repetition_penalty", 1.25},
                 {"logit_bias", {{"7", -100}, {"97", 2.5}}},
                 {"min_tokens", 2},
                 {"stop_token_ids", {65, 64}},
                 {"seed", 11},
                 {"n", 2},
                 {"priority", -3},
                 {"cache_salt", "tenant"},
                 {"kv_budget", 128},
                 {"kv_eviction", "cake"}};
  ASSERT_EQ(Chat(fields).status, 200);
  ASSERT_EQ(Complete(fields).status, 200);
  const std::vector<GenerationRequest> requests = engine_.requests();
  ASSERT_EQ(requests.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const SamplingParams& s = requests[i].sampling;
    EXPECT_EQ(s.temperature, 0.5f);
    EXPECT_EQ(s.top_k, 7);
    EXPECT_EQ(s.top_p, 0.25f);
    EXPECT_EQ(s.min_p, 0.125f);
    EXPECT_EQ(s.frequency_penalty, 0.5f);
    EXPECT_EQ(s.presence_penalty, -1.5f);
    EXPECT_EQ(s.repetition_penalty, 1.25f);
    ASSERT_EQ(s.logit_bias.size(), 2u);
    EXPECT_EQ(s.logit_bias[1].token, 97);
    EXPECT_EQ(s.logit_bias[1].bias, 2.5f);
    EXPECT_EQ(s.min_tokens, 2);
    EXPECT_EQ(s.stop_token_ids, (std::vector<int32_t>{64, 65, kEnd}));
    EXPECT_EQ(s.seed, 11u);
    EXPECT_EQ(s.choice, i % 2);
    EXPECT_EQ(requests[i].priority, -3);
    EXPECT_EQ(requests[i].cache_salt, "tenant");
    EXPECT_EQ(requests[i].kv_budget, 128);
    EXPECT_EQ(requests[i].kv_eviction, "cake");
  }
  ASSERT_EQ(Complete({{"ignore_eos", true}, {"top_k", -1}, {"max_tokens", 3}}).status, 200);
  EXPECT_TRUE(engine_.requests()[4].sampling.stop_token_ids.empty());
  EXPECT_EQ(engine_.requests()[4].sampling.top_k, 0);
}

TEST_F(OpenAiFieldsTest, TokenIdsComeBackOnRequest) {
  const std::vector<int> reply = {'H', 0xc3, 0xa9, 'l'};
  Json fields = {{"return_token_ids", true}, {"max_tokens", 4}};
  Json body = Complete(fields).json();
  EXPECT_EQ(body["choices"][0]["token_ids"], reply);
  EXPECT_EQ(body["choices"][0]["prompt_token_ids"], (Json{97, 98}));
  body = Chat(fields).json();
  EXPECT_EQ(body["choices"][0]["token_ids"], reply);
  EXPECT_EQ(body["prompt_token_ids"].size(), 20u);
  EXPECT_FALSE(Chat().json().contains("prompt_token_ids"));
  fields["stream"] = true;
  for (bool chat : {false, true}) {
    std::vector<int> ids;
    int prompts = 0;
    for (const Json& event : Events(chat ? Chat(fields) : Complete(fields))) {
      if (!event.is_object()) continue;
      const Json& choice = event["choices"][0];
      prompts += (chat ? event : choice).contains("prompt_token_ids");
      for (int id : choice.value("token_ids", Json::array())) ids.push_back(id);
    }
    EXPECT_EQ(prompts, 1);
    EXPECT_EQ(ids, reply);
  }
}

TEST_F(OpenAiFieldsTest, TheEndTokenIsAmongTheIds) {
  Json choice = Complete({{"return_token_ids", true}}).json()["choices"][0];
  EXPECT_EQ(choice["token_ids"].size(), sizeof(kReply));
  EXPECT_EQ(choice["token_ids"].back(), kEnd);
}

TEST_F(OpenAiFieldsTest, PromptLogprobs) {
  Json fields = {{"prompt_logprobs", 1}, {"max_tokens", 1}};
  Json expected = {nullptr,
                   {{"98", {{"logprob", -2.0}, {"rank", 3}, {"decoded_token", "b"}}},
                    {"97", {{"logprob", -1.0}, {"rank", 1}, {"decoded_token", "a"}}}}};
  EXPECT_EQ(Complete(fields).json()["choices"][0]["prompt_logprobs"], expected);
  Json chat = Chat(fields).json();
  EXPECT_EQ(chat["prompt_logprobs"].size(), 20u);
  EXPECT_EQ(chat["choices"][0]["logprobs"], nullptr);
  fields["max_tokens"] = 0;
  EXPECT_EQ(Complete(fields).json()["choices"][0]["prompt_logprobs"], expected);
  // The echo's logprobs take their own k.
  fields.update({{"echo", true}, {"logprobs", 2}, {"prompt_logprobs", 0}});
  Json both = Complete(fields).json()["choices"][0];
  EXPECT_EQ(both["prompt_logprobs"][1].size(), 1u);
  EXPECT_EQ(both["logprobs"]["top_logprobs"][1], (Json{{"a", -1.0}, {"b", -2.0}}));
}

// What evaluation harnesses send to score a continuation, and how they read the answer.
TEST_F(OpenAiFieldsTest, AGivenContinuationIsScored) {
  for (int max_tokens : {0, 1}) {
    Json body = Complete({{"prompt", {Json::array({97, 98, 99}), Json::array({100, 101})}},
                          {"max_tokens", max_tokens},
                          {"echo", true},
                          {"logprobs", 1},
                          {"temperature", 0}})
                    .json();
    ASSERT_EQ(body["choices"].size(), 2u);
    const Json& logprobs = body["choices"][0]["logprobs"];
    EXPECT_EQ(body["choices"][0]["text"], max_tokens == 0 ? "abc" : "abcH");
    EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
    for (const char* list : {"tokens", "token_logprobs", "top_logprobs", "text_offset"}) {
      EXPECT_EQ(logprobs[list].size(), 3u + static_cast<size_t>(max_tokens)) << list;
    }
    EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
    EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
    EXPECT_EQ(logprobs["token_logprobs"][2], -2.0);
    EXPECT_EQ(logprobs["text_offset"][2], 2);
    EXPECT_EQ(body["usage"]["prompt_tokens"], 5);
    EXPECT_EQ(body["usage"]["completion_tokens"], 2 * max_tokens);
  }
}

TEST_F(OpenAiFieldsTest, TheEndTokenHasItsEntryWhereAContinuationIsScored) {
  // 'H' is made to end the sequence: the list has it all the same, so that cutting one entry off
  // cuts off what was generated.
  Json fields = {{"stop_token_ids", {'H'}}, {"logprobs", 1}, {"max_tokens", 1}};
  EXPECT_EQ(Complete(fields).json()["choices"][0]["logprobs"]["tokens"], Json::array());
  fields["echo"] = true;
  for (bool stream : {false, true}) {
    fields["stream"] = stream;
    Reply reply = Complete(fields);
    Json choice = (stream ? Events(reply).at(0) : reply.json())["choices"][0];
    EXPECT_EQ(choice["text"], "ab");
    EXPECT_EQ(choice["logprobs"]["tokens"], (Json{"a", "b", "H"}));
    EXPECT_EQ(choice["logprobs"]["text_offset"], (Json{0, 1, 2}));
  }
}

TEST_F(OpenAiFieldsTest, EchoWithoutLogprobs) {
  EXPECT_EQ(Complete({{"echo", true}, {"max_tokens", 0}}).json()["choices"][0]["text"], "ab");
  EXPECT_EQ(Complete({{"max_tokens", 0}}).json()["error"]["param"], "max_tokens");
  // A special token of an echoed prompt counts in the offsets where it shows.
  Json body = {{"prompt", {97, 257, 98}}, {"echo", true}, {"logprobs", 0}, {"max_tokens", 0}};
  EXPECT_EQ(Complete(body).json()["choices"][0]["logprobs"]["text_offset"], (Json{0, 1, 1}));
  body["skip_special_tokens"] = false;
  EXPECT_EQ(Complete(body).json()["choices"][0]["logprobs"]["text_offset"], (Json{0, 1, 10}));
}

TEST_F(OpenAiFieldsTest, ChatEchoesTheMessageThatItContinues) {
  Json body = {
      {"messages",
       {{{"role", "user"}, {"content", "hi"}}, {{"role", "assistant"}, {"content", "Ah "}}}},
      {"continue_final_message", true},
      {"echo", true},
      {"logprobs", true},
      {"max_tokens", 1}};
  Json choice = Chat(body).json()["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "Ah H");
  EXPECT_EQ(choice["logprobs"]["content"].size(), 1u);
  body["stream"] = true;
  std::string text;
  for (const Json& event : Events(Chat(body))) {
    if (event.is_object()) text += event["choices"][0]["delta"].value("content", "");
  }
  EXPECT_EQ(text, "Ah H");
  EXPECT_EQ(Chat({{"echo", true}, {"max_tokens", 1}}).json()["choices"][0]["message"]["content"],
            "H");  // the last message is the user's
}

TEST_F(OpenAiFieldsTest, ContinuousUsage) {
  Json fields = {{"stream", true},
                 {"max_tokens", 4},
                 {"stream_options", {{"include_usage", true}, {"continuous_usage_stats", true}}}};
  for (bool chat : {false, true}) {
    std::vector<Json> events = Events(chat ? Chat(fields) : Complete(fields));
    int completion = 0;
    for (const Json& event : events) {
      if (!event.is_object()) continue;
      EXPECT_GE(event["usage"]["completion_tokens"], completion);
      completion = event["usage"]["completion_tokens"];
      EXPECT_EQ(event["usage"]["prompt_tokens"], chat ? 20 : 2);
    }
    EXPECT_EQ(completion, 4);
  }
  fields["stream_options"] = {{"continuous_usage_stats", true}};
  for (const Json& event : Events(Complete(fields))) {
    EXPECT_FALSE(event.is_object() && event.contains("usage"));
  }
}

TEST_F(OpenAiFieldsTest, StopStringsBeginBehindMinTokens) {
  // kReply is "Héllo wörld, ...", a token a byte.
  auto text = [&](int min_tokens, bool stream) {
    Json fields = {{"stop", {"l", "wö"}}, {"min_tokens", min_tokens}, {"stream", stream}};
    Reply reply = Complete(fields);
    if (!stream) return reply.json()["choices"][0]["text"].get<std::string>();
    std::string joined;
    for (const Json& event : Events(reply)) {
      if (event.is_object()) joined += event["choices"][0]["text"].get<std::string>();
    }
    return joined;
  };
  for (bool stream : {false, true}) {
    EXPECT_EQ(text(0, stream), "Hé");
    EXPECT_EQ(text(4, stream), "Hél");
    EXPECT_EQ(text(5, stream), "Héllo ");
    EXPECT_EQ(text(8, stream), "Héllo wör");  // the w lies before, so no stop begins there
  }
}

TEST_F(OpenAiFieldsTest, RequestIdsNameTheAnswer) {
  EXPECT_EQ(Chat({{"request_id", "a-1"}}).json()["id"], "chatcmpl-a-1");
  EXPECT_EQ(Complete({{"request_id", "a-1"}}).json()["id"], "cmpl-a-1");
  EXPECT_NE(Chat().json()["id"], Chat().json()["id"]);
}

TEST_F(OpenAiFieldsTest, DefaultsOfTheFolderReachTheEngine) {
  HttpServerOptions options;
  options.service.defaults = {.temperature = 0.5f,
                              .top_k = 7,
                              .top_p = 0.25f,
                              .min_p = 0.125f,
                              .repetition_penalty = 1.25f,
                              .max_new_tokens = 30,
                              .eos_token_ids = {}};
  Start(options);
  const Json messages = {{{"role", "user"}, {"content", "hi"}}};
  ASSERT_EQ(Chat().status, 200);
  ASSERT_EQ(Post("/v1/responses", {{"input", "hi"}}).status, 200);
  ASSERT_EQ(Complete().status, 200);
  ASSERT_EQ(
      Post("/v1/messages", {{"model", "tiny"}, {"max_tokens", 9}, {"messages", messages}}).status,
      200);
  const std::vector<GenerationRequest> requests = engine_.requests();
  ASSERT_EQ(requests.size(), 4u);
  for (const GenerationRequest& request : requests) {
    const SamplingParams& s = request.sampling;
    EXPECT_EQ(s.temperature, 0.5f);
    EXPECT_EQ(s.top_k, 7);
    EXPECT_EQ(s.top_p, 0.25f);
    EXPECT_EQ(s.min_p, 0.125f);
    EXPECT_EQ(s.repetition_penalty, 1.25f);
  }
  EXPECT_EQ(requests[0].sampling.max_tokens, 30);
  EXPECT_EQ(requests[1].sampling.max_tokens, 30);
  EXPECT_EQ(requests[2].sampling.max_tokens, 100);  // as asked
  // A request's own values come first.
  ASSERT_EQ(Chat({{"repetition_penalty", 1}, {"temperature", 1}, {"max_tokens", 50}}).status, 200);
  EXPECT_EQ(engine_.requests().back().sampling.repetition_penalty, 1);
  EXPECT_EQ(engine_.requests().back().sampling.temperature, 1);
  EXPECT_EQ(engine_.requests().back().sampling.max_tokens, 50);
}

TEST_F(OpenAiFieldsTest, OpenAnswersFitTheCache) {
  ModelInfo info = engine_.Info();
  info.max_sequence = 64;  // of a context of 200
  engine_.SetInfo(info);
  ASSERT_EQ(Chat().status, 200);
  ASSERT_EQ(Post("/v1/responses", {{"input", "hi"}}).status, 200);
  ASSERT_EQ(Chat({{"max_tokens", 100}}).status, 200);  // the engine's to refuse
  ASSERT_EQ(Chat({{"kv_budget", 32}}).status, 200);    // its policy may let nothing of answers go
  ASSERT_EQ(Chat({{"messages", {{{"role", "user"}, {"content", std::string(60, 'a')}}}}}).status,
            200);
  const std::vector<GenerationRequest> requests = engine_.requests();
  EXPECT_EQ(requests[0].sampling.max_tokens, 44);
  EXPECT_EQ(requests[1].sampling.max_tokens, 44);
  EXPECT_EQ(requests[2].sampling.max_tokens, 100);
  EXPECT_EQ(requests[3].sampling.max_tokens, 44);
  EXPECT_EQ(requests[4].sampling.max_tokens, 200 - 78);  // a prompt over the cache is refused there
}

TEST_F(OpenAiFieldsTest, PrioritiesNeedAPolicyThatKnowsThem) {
  ModelInfo info = engine_.Info();
  info.takes_priority = false;
  engine_.SetInfo(info);
  const Json error = Complete({{"priority", -1}}).json()["error"];
  EXPECT_EQ(error["param"], "priority");
  EXPECT_NE(error["message"].get<std::string>().find("scheduling_policy"), std::string::npos);
  EXPECT_EQ(Complete({{"priority", 0}}).status, 200);
}

TEST_F(OpenAiFieldsTest, ATextOverTheContextIsRefused) {
  for (size_t bytes : {size_t{201}, size_t{1} << 20}) {
    const std::string text(bytes, 'a');
    for (const Reply& reply : {Complete({{"prompt", text}}), Complete({{"prompt", {"b", text}}}),
                               Chat({{"messages", {{{"role", "user"}, {"content", text}}}}})}) {
      EXPECT_EQ(reply.status, 400);
      const Json error = reply.json()["error"];
      EXPECT_EQ(error["code"], "context_length_exceeded");
      EXPECT_NE(error["message"].get<std::string>().find("200 tokens, and the prompt has more"),
                std::string::npos);
    }
    EXPECT_EQ(Complete({{"prompt", text}, {"truncate_prompt_tokens", 5}}).status, 200);
    EXPECT_EQ(Post("/tokenize", {{"prompt", text}}).json()["count"], bytes);
  }
}

TEST_F(OpenAiFieldsTest, PromptsKeepTheirLastTokens) {
  Json body = Complete({{"prompt", {"abcd", "xy"}},
                        {"truncate_prompt_tokens", 3},
                        {"echo", true},
                        {"max_tokens", 0}})
                  .json();
  EXPECT_EQ(body["choices"][0]["text"], "bcd");
  EXPECT_EQ(body["choices"][1]["text"], "xy");
  EXPECT_EQ(body["usage"]["prompt_tokens"], 5);
  ASSERT_EQ(Complete({{"prompt", {1, 2, 3, 4}}, {"truncate_prompt_tokens", 2}}).status, 200);
  // More is kept than the context holds: the same for ids as for text.
  EXPECT_EQ(Complete({{"prompt", std::vector<int>(300, 1)}, {"truncate_prompt_tokens", 250}})
                .json()["error"]["code"],
            "context_length_exceeded");
  EXPECT_EQ(engine_.prompts().back(), (std::vector<int32_t>{3, 4}));
  ASSERT_EQ(Chat({{"truncate_prompt_tokens", 10}}).status, 200);
  EXPECT_EQ(tokenizer_->Decode(engine_.prompts().back(), true), "assistant:");
  EXPECT_EQ(Post("/tokenize", {{"prompt", "abc"}, {"truncate_prompt_tokens", 1}}).json()["tokens"],
            (Json{99}));
  ASSERT_EQ(Post("/v1/embeddings", {{"input", "abc"}, {"truncate_prompt_tokens", 2}}).status, 200);
  EXPECT_EQ(engine_.prompts().back(), (std::vector<int32_t>{98, 99}));
  // -1: as many as there is room for.
  std::vector<int> ids(1000, 5);
  ids.back() = 6;
  ASSERT_EQ(Complete({{"prompt", ids}, {"truncate_prompt_tokens", -1}, {"max_tokens", 50}}).status,
            200);
  EXPECT_EQ(engine_.prompts().back().size(), 150u);
  EXPECT_EQ(engine_.prompts().back().back(), 6);
  const Json error = Complete({{"prompt", ids}}).json()["error"];
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_EQ(error["param"], "prompt");
  for (const Json& bad : {Json(0), Json(-2), Json("x")}) {
    EXPECT_EQ(Complete({{"truncate_prompt_tokens", bad}}).json()["error"]["param"],
              "truncate_prompt_tokens");
  }
}

}  // namespace
}  // namespace cadre
