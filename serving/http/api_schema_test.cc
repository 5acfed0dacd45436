// Fields of requests and of generation_config.json: what is refused, and how it is named.
#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <vector>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

using ApiSchemaTest = HttpServerTest;

TEST_F(ApiSchemaTest, SchemaErrorsNameTheField) {
  const std::pair<Json, const char*> cases[] = {
      {{{"temperature", -1}}, "temperature"},
      {{{"temperature", "hot"}}, "temperature"},
      {{{"top_p", 0}}, "top_p"},
      {{{"n", 2147483648}}, "n"},
      {{{"n", 0}}, "n"},
      {{{"max_tokens", 0}}, "max_tokens"},
      {{{"max_tokens", 1000}}, "messages"},
      {{{"top_logprobs", 21}, {"logprobs", true}}, "top_logprobs"},
      {{{"top_logprobs", 2}}, "top_logprobs"},
      {{{"stop", {"a", "b", "c", "d", "e"}}}, "stop"},
      {{{"stop", {""}}}, "stop"},
      {{{"messages", Json::array()}}, "messages"},
      {{{"messages", {{{"role", "user"}}}}}, "messages[0].content"},
      {{{"messages", {{{"role", "x"}, {"content", ""}}}}}, "messages[0].role"},
      {{{"messages",
         {{{"role", "user"}, {"content", "a"}},
          {{"role", "assistant"}, {"content", nullptr}, {"tool_calls", {{{"id", "1"}}}}}}}},
       "messages[1].tool_calls"},
      {{{"messages",
         {{{"role", "assistant"},
           {"tool_calls", {{{"function", {{"name", "f"}, {"arguments", "[1]"}}}}}}}}}},
       "messages[0].tool_calls"},
      {{{"messages",
         {{{"role", "assistant"}, {"content", "a"}, {"function_call", {{"name", "f"}}}}}}},
       "messages[0].function_call"},
      {{{"messages", {{{"role", "assistant"}, {"tool_calls", Json::array()}}}}},
       "messages[0].content"},
      {{{"messages", {{{"role", "tool"}, {"content", ""}}}}}, "messages"},
      {{{"stream_options", {{"include_usage", true}}}}, "stream_options"},
      {{{"frequency_penalty", 2.5}}, "frequency_penalty"},
      {{{"presence_penalty", -2.5}}, "presence_penalty"},
      {{{"repetition_penalty", 0}}, "repetition_penalty"},
      {{{"logit_bias", {{"258", 1}}}}, "logit_bias"},
      {{{"logit_bias", {{"-1", 1}}}}, "logit_bias"},
      {{{"logit_bias", {{"7x", 1}}}}, "logit_bias"},
      {{{"logit_bias", {{"7", 101}}}}, "logit_bias"},
      {{{"logit_bias", {{"7", "x"}}}}, "logit_bias"},
      {{{"logit_bias", {7, 1}}}, "logit_bias"},
      {{{"prompt_logprobs", 21}}, "prompt_logprobs"},
      {{{"prompt_logprobs", 1}, {"stream", true}}, "prompt_logprobs"},
      {{{"return_token_ids", 1}}, "return_token_ids"},
      {{{"priority", 1.5}}, "priority"},
      {{{"cache_salt", 5}}, "cache_salt"},
      {{{"kv_budget", 0}}, "kv_budget"},
      {{{"kv_budget", "64"}}, "kv_budget"},
      {{{"kv_eviction", 3}}, "kv_eviction"},
      {{{"kv_eviction", std::string(65, 'x')}}, "kv_eviction"},
      {{{"best_of", 3}}, "best_of"},
      {{{"suffix", "x"}}, "suffix"},
      {{{"bad_words", {"x"}}}, "bad_words"},
      {{{"allowed_token_ids", {5}}}, "allowed_token_ids"},
      {{{"request_id", "a b"}}, "request_id"},
      {{{"tools", {{{"type", "function"}}}}}, "tools"},
      {{{"tools", {{{"type", "function"}, {"function", {{"name", "f g"}}}}}}}, "tools"},
      {{{"tools", 3}}, "tools"},
      // The model has no template that speaks of tools.
      {{{"tools", {{{"type", "function"}, {"function", {{"name", "f"}}}}}}}, "tools"},
      {{{"tool_choice", "required"}}, "tool_choice"},
      {{{"tools", {{{"type", "function"}, {"function", {{"name", "f"}}}}}},
        {"tool_choice", {{"type", "function"}, {"function", {{"name", "g"}}}}}},
       "tool_choice"},
      {{{"functions", {{{"name", "f"}}}}}, "functions"},
      {{{"response_format", {{"type", "yaml"}}}}, "response_format"},
      {{{"response_format", {{"type", "json_schema"}}}}, "response_format"},
      {{{"response_format",
         {{"type", "json_schema"}, {"json_schema", {{"schema", {{"not", {{"type", "null"}}}}}}}}}},
       "response_format"},
      {{{"guided_json", {{"type", "array"}, {"maxItems", 1000000000000}}}}, "guided_json"},
      {{{"guided_json", "{"}}, "guided_json"},
      {{{"guided_regex", "(a)\\1"}}, "guided_regex"},
      {{{"guided_regex", "(.*a.{40}){40}"}}, "guided_regex"},
      {{{"guided_grammar", "root ::= root"}}, "guided_grammar"},
      {{{"grammar", "x"}}, "grammar"},
      {{{"guided_choice", Json::array()}}, "guided_choice"},
      {{{"structured_outputs", {{"structural_tag", "x"}}}}, "structured_outputs.structural_tag"},
      {{{"guided_regex", "a"}, {"response_format", {{"type", "json_object"}}}}, "guided_regex"},
      {{{"chat_template_kwargs", {{"chat_template", "x"}}}}, "chat_template_kwargs"},
      {{{"min_tokens", 9}, {"max_tokens", 5}}, "min_tokens"},
      {{{"typical_p", 0.9}}, "typical_p"},
      {{{"mirostat", 2}}, "mirostat"},
      {{{"dry_multiplier", 0.8}}, "dry_multiplier"},
      {{{"xtc_probability", 0.5}}, "xtc_probability"},
      {{{"n_probs", 3}}, "n_probs"},
      {{{"repeat_penalty", 1.1}}, "repeat_penalty"},
      {{{"n_predict", 5}}, "n_predict"},
      {{{"spaces_between_special_tokens", false}}, "spaces_between_special_tokens"},
      {{{"return_tokens_as_token_ids", true}}, "return_tokens_as_token_ids"},
      {{{"store", true}}, "store"},
      {{{"truncate_prompt_tokens", 0}}, "truncate_prompt_tokens"},
      {{{"stream", 1}}, "stream"}};
  for (const auto& [fields, param] : cases) {
    Reply reply = Chat(fields);
    EXPECT_EQ(reply.status, 400) << fields;
    EXPECT_EQ(reply.json()["error"]["param"], param) << reply.body;
    EXPECT_EQ(reply.json()["error"]["type"], "invalid_request_error");
  }
  EXPECT_EQ(Chat({{"model", "other"}}).status, 404);
  EXPECT_EQ(Complete({{"logprobs", 21}}).json()["error"]["param"], "logprobs");
  EXPECT_EQ(Complete({{"prompt", {300}}}).json()["error"]["param"], "prompt");
  std::vector<int> every(258);
  std::iota(every.begin(), every.end(), 0);
  Json stuck = {{"min_tokens", 1}, {"max_tokens", 2}, {"stop_token_ids", every}};
  EXPECT_EQ(Complete(stuck).json()["error"]["param"], "min_tokens");
  every.erase(every.begin() + 7);
  every.push_back(100000);
  stuck["stop_token_ids"] = every;
  EXPECT_EQ(Complete(stuck).status, 200);
  EXPECT_EQ(Complete({{"prompt", ""}}).json()["error"]["param"], "prompt");
  EXPECT_EQ(Complete({{"prompt", {Json::array({5}), "a"}}}).json()["error"]["param"], "prompt");
  EXPECT_EQ(Complete({{"prompt", Json::object()}}).json()["error"]["param"], "prompt");
  // Values that ask for nothing, null and unknown fields pass.
  Json fine = {
      {"frequency_penalty", 0},
      {"tools", Json::array()},
      {"response_format", {{"type", "text"}}},
      {"logit_bias", nullptr},
      {"zebra", 1},
      {"top_logprobs", 0},
      {"store", false},
      {"typical_p", 1.0},
      {"mirostat", 0},
      {"mirostat_tau", 5},
      {"dry_multiplier", 0},
      {"dry_base", 1.75},
      {"xtc_probability", 0},
      {"repeat_penalty", 1},
      {"spaces_between_special_tokens", true},
      {"user", "me"},
      {"messages", {{{"role", "user"}, {"content", {{{"type", "text"}, {"text", "a"}}}}}}}};
  EXPECT_EQ(Chat(fine).status, 200);
}

TEST_F(ApiSchemaTest, BodiesOfTooManyValuesAreRefusedBeforeTheyAreRead) {
  for (const char* one : {"\"a\"", "[5]", "{}", "\"\""}) {
    std::string list = one;
    for (int i = 0; i < 300000; ++i) list.append(",").append(one);
    const Json error =
        Raw(PostText("/v1/completions", fmt::format(R"({{"prompt":[{}]}})", list))).json()["error"];
    EXPECT_EQ(error["code"], "invalid_json") << one;
    EXPECT_NE(error["message"].get<std::string>().find("texts, lists and objects"),
              std::string::npos);
  }
  const Json many(129, "a");
  EXPECT_EQ(Complete({{"prompt", many}}).json()["error"]["param"], "prompt");
  EXPECT_EQ(Complete({{"prompt", {"a", "b"}}, {"n", 65}}).json()["error"]["param"], "prompt");
}

// An object's names are searched one by one as it is read: without a bound this takes minutes.
TEST_F(ApiSchemaTest, ObjectsOfTooManyNamesAreRefused) {
  auto bias = [](int names) {
    Json object;
    for (int i = 0; i < names; ++i) object[std::to_string(i)] = 1;
    return object;
  };
  Json reply = Complete({{"logit_bias", bias(100000)}}).json();
  EXPECT_EQ(reply["error"]["code"], "invalid_json");
  EXPECT_NE(reply["error"]["message"].get<std::string>().find("1024 names"), std::string::npos);
  EXPECT_EQ(Complete({{"logit_bias", bias(258)}}).status, 200);
  // Colons in texts and in other objects do not count.
  Json parts = Json::array();
  for (int i = 0; i < 1100; ++i) parts.push_back({{"type", "text"}, {"text", "::"}});
  EXPECT_EQ(Post("/tokenize", {{"messages", {{{"role", "user"}, {"content", parts}}}}}).status,
            200);
}

using Files = std::map<std::string, std::string>;

// A model folder with these files.
class Folder {
 public:
  explicit Folder(const Files& files)
      : path_(std::filesystem::path(testing::TempDir()) /
              fmt::format("cadre-defaults-{}", ::getpid())) {
    std::filesystem::create_directories(path_);
    for (const auto& [name, text] : files) std::ofstream(path_ / name) << text;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  absl::StatusOr<SamplingDefaults> Load() const { return LoadSamplingDefaults(path_.string()); }

 private:
  std::filesystem::path path_;
};

TEST(SamplingDefaultsTest, ComeFromGenerationConfig) {
  auto defaults = Folder({{"generation_config.json",
                           R"({"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": null,
                               "repetition_penalty": 1.05, "max_new_tokens": 2048,
                               "eos_token_id": [9, 3, 9], "do_sample": true})"},
                          {"config.json", R"({"eos_token_id": 5})"}})
                      .Load();
  ASSERT_TRUE(defaults.ok()) << Message(defaults.status());
  EXPECT_FLOAT_EQ(defaults->temperature, 0.6f);
  EXPECT_EQ(defaults->top_k, 20);
  EXPECT_FLOAT_EQ(defaults->top_p, 0.9f);
  EXPECT_EQ(defaults->min_p, 0);
  EXPECT_FLOAT_EQ(defaults->repetition_penalty, 1.05f);
  EXPECT_EQ(defaults->max_new_tokens, 2048);
  EXPECT_EQ(defaults->eos_token_ids, (std::vector<int32_t>{3, 9}));
}

TEST(SamplingDefaultsTest, EndsOfSequenceFallBackToTheConfig) {
  const Files config = {{"config.json", R"({"eos_token_id": 5})"}};
  EXPECT_EQ(Folder(config).Load()->eos_token_ids, std::vector<int32_t>{5});
  auto none = Folder(Files()).Load();
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->eos_token_ids.empty());
  EXPECT_EQ(none->temperature, 1);
  EXPECT_EQ(none->repetition_penalty, 1);
  EXPECT_EQ(none->max_new_tokens, 0);
}

TEST(SamplingDefaultsTest, BadValuesNameFileAndField) {
  for (const auto& [text, said] :
       std::map<std::string, std::string>{{R"({"temperature": -1})", "temperature"},
                                          {R"({"top_p": "x"})", "top_p"},
                                          {R"({"top_k": 1.5})", "top_k"},
                                          {R"({"repetition_penalty": 0})", "repetition_penalty"},
                                          {R"({"max_new_tokens": "x"})", "max_new_tokens"},
                                          {R"({"eos_token_id": [-2]})", "eos_token_id"},
                                          {R"({"eos_token_id": 99999999999})", "eos_token_id"},
                                          {"{", "JSON"},
                                          {"[]", "object"}}) {
    const Files files = {{"generation_config.json", text}};
    auto defaults = Folder(files).Load();
    EXPECT_EQ(defaults.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(Message(defaults.status()).find("generation_config.json"), std::string::npos);
    EXPECT_NE(Message(defaults.status()).find(said), std::string::npos)
        << Message(defaults.status());
  }
}

TEST(EndTokenIds, AreTheFoldersAndElseTheTokenizers) {
  const std::string folder =
      std::filesystem::temp_directory_path() / ("cadre_end_ids_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/tokenizer.json") << TokenizerJson();
  auto plain = Tokenizer::Load(folder);
  ASSERT_TRUE(plain.ok()) << Message(plain.status());
  std::ofstream(folder + "/tokenizer_config.json") << R"({"eos_token": "<|end|>"})";
  auto ending = Tokenizer::Load(folder);
  ASSERT_TRUE(ending.ok()) << Message(ending.status());
  std::filesystem::remove_all(folder);
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(EndTokenIds({.eos_token_ids = {3, 9}}, ending->get()), Ids({3, 9}));
  EXPECT_EQ(EndTokenIds({}, ending->get()), Ids({256}));
  EXPECT_EQ(EndTokenIds({}, plain->get()), Ids());
  EXPECT_EQ(EndTokenIds({}, nullptr), Ids());
}

}  // namespace
}  // namespace cadre
