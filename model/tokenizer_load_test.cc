// Files that are wrong: each ends in one line that names file, field and value.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/status.h"
#include "model/tokenizer.h"

namespace cadre {
namespace {

using Json = nlohmann::ordered_json;
using testing::AllOf;
using testing::HasSubstr;

Json Good() {
  return Json::parse(R"({"added_tokens":[{"id":3,"content":"<s>","special":true}],
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},
    "decoder":{"type":"ByteLevel"},
    "model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})");
}

std::string Failure(const Json& json, const std::string& config = "") {
  const auto tokenizer = Tokenizer::Parse("t.json", json.dump(), config);
  EXPECT_FALSE(tokenizer.ok()) << json.dump();
  const std::string message = Message(tokenizer.status());
  EXPECT_THAT(message, HasSubstr("t.json"));
  EXPECT_EQ(message.find('\n'), std::string::npos);
  return message;
}

std::string FailureAt(const std::string& pointer, const Json& value) {
  Json json = Good();
  json[Json::json_pointer(pointer)] = value;
  return Failure(json);
}

TEST(BadTokenizer, TheGoodOneLoads) {
  const auto tokenizer = Tokenizer::Parse("t.json", Good().dump());
  ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  EXPECT_EQ((*tokenizer)->Encode("abba"), (std::vector<int32_t>{2, 1, 0}));
}

TEST(BadTokenizer, Json) {
  for (const std::string text : {"", "{", "[]", "nul", "{\"model\":\"\xFF\"}"}) {
    const auto tokenizer = Tokenizer::Parse("t.json", text);
    ASSERT_FALSE(tokenizer.ok()) << text;
    EXPECT_THAT(Message(tokenizer.status()), HasSubstr("t.json"));
  }
  std::string deep;
  for (int i = 0; i < 5000; ++i) deep += "{\"a\":[";
  EXPECT_FALSE(Tokenizer::Parse("t.json", deep).ok());
}

TEST(BadTokenizer, Merges) {
  EXPECT_THAT(FailureAt("/model/merges", Json::array({"a b", "a zz"})),
              AllOf(HasSubstr("model.merges[1]"), HasSubstr("\"zz\" is not in model.vocab")));
  EXPECT_THAT(FailureAt("/model/merges", Json::array({"b a"})),
              AllOf(HasSubstr("model.merges[0]"), HasSubstr("\"ba\"")));
  EXPECT_THAT(FailureAt("/model/merges", Json::array({"a b b"})), HasSubstr("model.merges[0]"));
  EXPECT_THAT(FailureAt("/model/merges", Json::array({Json::array({"a"})})),
              HasSubstr("an array of two strings"));
  EXPECT_THAT(FailureAt("/model/merges", Json::array({7})), HasSubstr("model.merges[0]: 7"));
  EXPECT_THAT(FailureAt("/model/merges", "a b"), HasSubstr("an array is needed"));
}

TEST(BadTokenizer, Ids) {
  EXPECT_THAT(FailureAt("/model/vocab/a", -1),
              AllOf(HasSubstr("model.vocab[\"a\"]: -1"), HasSubstr("an id from 0")));
  EXPECT_THAT(FailureAt("/model/vocab/a", "x"), HasSubstr("model.vocab[\"a\"]"));
  EXPECT_THAT(FailureAt("/model/vocab/a", 1.5), HasSubstr("model.vocab[\"a\"]: 1.5"));
  EXPECT_THAT(FailureAt("/model/vocab/a", 1), AllOf(HasSubstr("id 1"), HasSubstr("taken by")));
  EXPECT_THAT(FailureAt("/model/vocab/a", 60'000'000), HasSubstr("60000000 is out of range"));
  EXPECT_THAT(FailureAt("/model/vocab/a", 9'000'000'000), HasSubstr("model.vocab[\"a\"]"));
  EXPECT_THAT(FailureAt("/added_tokens/0/id", 1),
              AllOf(HasSubstr("\"<s>\" has the id 1"), HasSubstr("taken by \"b\"")));
  EXPECT_THAT(FailureAt("/added_tokens/0/id", 5'000'000), HasSubstr("added_tokens[0]"));
  EXPECT_THAT(FailureAt("/added_tokens/0/content", "a"), HasSubstr("\"a\" has the id 3, but 0"));
  EXPECT_THAT(FailureAt("/added_tokens/0/content", ""), HasSubstr("an empty token"));
}

TEST(BadTokenizer, Types) {
  EXPECT_THAT(FailureAt("/model", 3), HasSubstr("model: 3"));
  EXPECT_THAT(FailureAt("/model/type", "Unigram"), HasSubstr("model.type: \"Unigram\""));
  EXPECT_THAT(FailureAt("/model/vocab", Json::array()), HasSubstr("an object is needed"));
  EXPECT_THAT(FailureAt("/model/byte_fallback", 1), HasSubstr("model.byte_fallback: 1"));
  EXPECT_THAT(FailureAt("/model/unk_token", "zz"), HasSubstr("model.unk_token: \"zz\""));
  EXPECT_THAT(FailureAt("/model/dropout", 0.1), HasSubstr("model.dropout: 0.1"));
  EXPECT_THAT(FailureAt("/added_tokens", 3), HasSubstr("added_tokens: 3"));
  EXPECT_THAT(FailureAt("/added_tokens/0/special", "yes"), HasSubstr("added_tokens[0].special"));
  EXPECT_THAT(FailureAt("/model/vocab", Json::object()), HasSubstr("model."));
  Json json = Good();
  json["model"].erase("merges");
  EXPECT_THAT(Failure(json), HasSubstr("\"merges\" is missing"));
}

TEST(BadTokenizer, Parts) {
  const auto split = [](const std::string& regex) {
    return Json{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}};
  };
  EXPECT_THAT(
      FailureAt("/pre_tokenizer", split("(a")),
      AllOf(HasSubstr("pre_tokenizer.pattern.Regex"), HasSubstr("\"(a\" does not compile")));
  EXPECT_THAT(FailureAt("/pre_tokenizer", split("[a&&b]")), HasSubstr("&&"));
  EXPECT_THAT(FailureAt("/pre_tokenizer", split(std::string(70'000, 'a'))), HasSubstr("70000"));
  EXPECT_THAT(FailureAt("/pre_tokenizer/type", "Magic"), HasSubstr("\"Magic\"; known are"));
  EXPECT_THAT(FailureAt("/normalizer", Json{{"type", "Precompiled"}}), HasSubstr("Precompiled"));
  EXPECT_THAT(FailureAt("/normalizer", Json{{"type", "Prepend"}}), HasSubstr("\"prepend\""));
  EXPECT_THAT(FailureAt("/decoder", Json{{"type", "WordPiece"}}), HasSubstr("WordPiece"));
  EXPECT_THAT(
      FailureAt("/post_processor", Json::parse(R"({"type":"TemplateProcessing","special_tokens":{},
                          "single":[{"SpecialToken":{"id":"X"}},{"Sequence":{"id":"A"}}]})")),
      HasSubstr("special_tokens"));
  Json behavior = split("a");
  behavior["behavior"] = "Sideways";
  EXPECT_THAT(FailureAt("/pre_tokenizer", behavior), HasSubstr("Removed, Isolated"));
  Json nested = {{"type", "NFC"}};
  for (int i = 0; i < 12; ++i) {
    nested = Json{{"type", "Sequence"}, {"normalizers", Json::array({nested})}};
  }
  EXPECT_THAT(FailureAt("/normalizer", nested), HasSubstr("deeper than 8"));
}

TEST(BadTokenizer, Config) {
  EXPECT_THAT(Failure(Good(), R"({"eos_token":"<nope>"})"),
              AllOf(HasSubstr("(config)"), HasSubstr("eos_token: \"<nope>\"")));
  EXPECT_THAT(Failure(Good(), R"({"eos_token":5})"), HasSubstr("eos_token: 5"));
  EXPECT_THAT(Failure(Good(), "[]"), HasSubstr("an object is needed"));
  EXPECT_THAT(Failure(Good(), R"({"added_tokens_decoder":{"x":{"content":"q"}}})"),
              HasSubstr("added_tokens_decoder.x"));
}

}  // namespace
}  // namespace cadre
