#include "serving/grammar/json_schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/process_memory.h"
#include "serving/grammar/compiled_grammar.h"
#include "serving/grammar/json_grammar.h"
#include "serving/grammar/schema_oracle.h"

namespace cadre {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

std::string Refusal(const Json& schema) {
  auto grammar = ParseJsonSchema(schema);
  if (!grammar.ok()) return Message(grammar.status());
  return Message(CompileAutomaton(*std::move(grammar), {}).status());
}
std::string Refusal(const char* schema) { return Refusal(Json::parse(schema)); }

// "ok", "prefix" where more must come, or the first part that may not stand there.
std::string Match(const Grammar& grammar, std::string_view text) {
  auto automaton = CompileAutomaton(grammar, {});
  if (!automaton.ok()) return Message(automaton.status());
  GrammarWalk walk(*automaton);
  for (size_t i = 0; i < text.size(); ++i) {
    if (!walk.Step(static_cast<uint8_t>(text[i]))) return std::string(text.substr(i));
  }
  return walk.at_end() ? "ok" : "prefix";
}
std::string Match(const char* schema, std::string_view text) {
  auto grammar = ParseJsonSchema(Json::parse(schema));
  return grammar.ok() ? Match(*grammar, text) : Message(grammar.status());
}

TEST(JsonSchema, TextsThatItAcceptsAndNot) {
  const char* person = R"({"type": "object", "title": "P", "properties": {
      "name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0},
      "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
      "required": ["name", "tags"]})";
  EXPECT_EQ(Match(person, R"({"name":"Ann","age":31,"tags":[]})"), "ok");
  EXPECT_EQ(Match(person,
                  "{\"name\": \"A\xc3\xa9\xf0\x9f\x98\x80\\\"\\u00e9\",\n  \"tags\": "
                  "[\"a\", \"b\"]\n}"),
            "ok");
  EXPECT_EQ(Match(person, R"({"name":"Ann")"), "prefix");
  EXPECT_EQ(Match(person, R"({"age":1})"), R"(age":1})");
  EXPECT_EQ(Match(person, R"({"name":"Barbara"})"), R"(ra"})");
  EXPECT_EQ(Match(person, R"({"name":"A","age":-1})"), R"(-1})");
  EXPECT_EQ(Match(person, R"({"name":"A","tags":["c"]})"), R"(c"]})");
  EXPECT_EQ(Match(person, R"({"name":"A","tags":["a","a","a"]})"), R"(,"a"]})");
  EXPECT_EQ(Match(person, R"({"name":"A","x":1})"), R"(x":1})");
  EXPECT_EQ(
      Match(R"({"$ref":"#/definitions/a~1b%25","definitions":{"a/b%":{"type":"null"}}})", "null"),
      "ok");
  EXPECT_EQ(Match(R"({"type":["integer","null"]})", "null"), "ok");
  EXPECT_EQ(Match(R"({"type":"string","format":"date"})", "\"2024-02-29\""), "ok");
  EXPECT_EQ(Match(R"({"type":"string","format":"date"})", "\"2023-02-29\""), "9\"");
  EXPECT_EQ(Match(R"({"type":"string","pattern":"b"})", "\"abc\""), "ok");
  EXPECT_EQ(Match(R"({"type":"string","pattern":"^[\"\\\\]$"})", R"("\\")"), "ok");
  EXPECT_EQ(Match("true", R"({"a":[1,-2.5e-3,{"b":null}]})"), "ok");
  EXPECT_EQ(Match("{}", R"("\ud800")"), R"(800")");
}

TEST(JsonSchema, KeysBesideNamedOnesDiffer) {
  const char* schema = R"({"properties": {"ab": {"const": 1}, "abc": {"const": 2}},
                           "additionalProperties": {"const": 3}})";
  EXPECT_EQ(Match(schema, R"({"ab":1,"abc":2,"a":3,"abcd":3,"b":3,"":3})"), "ok");
  EXPECT_EQ(Match(schema, R"({"ab":3})"), "3}");
  EXPECT_EQ(Match(schema, R"({"x":3,"abc":3})"), R"(":3})");
  EXPECT_EQ(Match(schema, R"({"\u0061b":3})"), R"(\u0061b":3})");
}

TEST(JsonSchema, NumbersBetweenBounds) {
  std::mt19937 random(1);
  for (int round = 0; round < 150; ++round) {
    auto draw = [&] { return static_cast<int>(random() % 4001) - 2000; };
    const double scale = round % 3 == 0 ? 1 : round % 3 == 1 ? 8 : 64;
    Json schema = {{"type", round % 2 == 0 ? "integer" : "number"}};
    schema[random() % 2 ? "minimum" : "exclusiveMinimum"] = draw() / scale;
    if (random() % 4) schema[random() % 2 ? "maximum" : "exclusiveMaximum"] = draw() / scale;
    auto grammar = ParseJsonSchema(schema);
    ASSERT_TRUE(grammar.ok()) << Message(grammar.status());
    auto automaton = CompileAutomaton(*grammar, {});
    for (int i = 0; i < 60; ++i) {
      std::string text = Json(draw() / scale).dump();
      if (i % 3 == 0) text = std::to_string(draw());
      // The bounds themselves, and what is next to them.
      if (i % 3 == 1) {
        auto bound = schema.begin();
        std::advance(bound, 1 + random() % (schema.size() - 1));
        text = Json(bound->get<double>() + static_cast<double>(random() % 3) - 1).dump();
      }
      if (round % 2 == 0 && text.ends_with(".0")) text.resize(text.size() - 2);
      const Json value = Json::parse(text);
      bool expected = SchemaOracle(schema).Valid(value);
      if (text == "-0") expected = false;
      bool matched = automaton.ok();
      if (matched) {
        GrammarWalk walk(*automaton);
        for (char c : text) matched = matched && walk.Step(static_cast<uint8_t>(c));
        matched = matched && walk.at_end();
      }
      ASSERT_EQ(matched, expected) << schema << " " << text;
    }
  }
}

TEST(JsonSchema, WhatIsNotSupportedIsRefusedByName) {
  EXPECT_THAT(Refusal(R"({"properties":{"a":{"not":{"type":"null"}}}})"),
              HasSubstr("#/properties/a: 'not' is not supported"));
  EXPECT_THAT(Refusal(R"({"not":{}})"), HasSubstr("'not' is not supported"));
  EXPECT_THAT(Refusal(R"({"contains":{}})"), HasSubstr("'contains' is not supported"));
  for (const char* keyword : {"if", "dependentRequired", "contains", "patternProperties",
                              "propertyNames", "unevaluatedProperties", "$dynamicRef"}) {
    const Json schema = {{"type", "object"}, {keyword, {{"a", 1}}}};
    EXPECT_THAT(Refusal(schema.dump().c_str()), HasSubstr(keyword));
  }
  EXPECT_THAT(Refusal(R"({"type":"array","uniqueItems":true})"), HasSubstr("uniqueItems"));
  EXPECT_EQ(Refusal(R"({"type":"array","uniqueItems":false})"), "");
  EXPECT_THAT(Refusal(R"({"type":"integer","multipleOf":3})"), HasSubstr("multipleOf"));
  EXPECT_THAT(Refusal(R"({"type":"string","format":"iri"})"), HasSubstr("'iri'"));
  EXPECT_THAT(Refusal(R"({"type":"text"})"), HasSubstr("'type' must be"));
  EXPECT_THAT(Refusal(R"({"$ref":"http://x/y"})"), HasSubstr("same schema"));
  EXPECT_THAT(Refusal(R"({"$ref":"#/a"})"), HasSubstr("not there"));
  EXPECT_THAT(Refusal(R"({"$ref":"#x"})"), HasSubstr("not there"));
  EXPECT_THAT(Refusal(R"x({"type":"string","pattern":"(?=a)"})x"), HasSubstr("look-around"));
  EXPECT_THAT(Refusal("3"), HasSubstr("a schema is an object"));
  EXPECT_THAT(Refusal(R"({"minItems":-1})"), HasSubstr("whole number"));
  EXPECT_THAT(Refusal(R"({"enum":3})"), HasSubstr("'enum'"));
}

TEST(JsonSchema, WhatNothingSatisfiesIsRefused) {
  for (const char* schema :
       {"false", R"({"enum":[]})", R"({"type":"integer","minimum":3,"maximum":2})",
        R"({"$ref":"#"})", R"({"type":"string","enum":[1]})", R"({"type":[]})",
        R"({"properties":{"a":{"$ref":"#"}},"required":["a"]})",
        R"({"allOf":[{"type":"string"},{"type":"null"}]})"}) {
    EXPECT_THAT(Refusal(schema), HasSubstr("no text matches")) << schema;
  }
}

TEST(JsonSchema, HostileSchemasAreRefusedInBoundedTime) {
  std::string deep = R"({"type":"null"})";
  for (int i = 0; i < 100; ++i) deep = R"({"items":)" + deep + "}";
  Json doubling = {{"$defs", Json::object()}};
  for (int i = 0; i < 40; ++i) {
    const std::string next = "#/$defs/a" + std::to_string(i + 1);
    doubling["$defs"]["a" + std::to_string(i)] = {
        {"anyOf", {{{"$ref", next}, {"minLength", i}}, {{"$ref", next}, {"maxLength", 90}}}}};
  }
  doubling["$defs"]["a40"] = {{"type", "string"}};
  doubling["$ref"] = "#/$defs/a0";
  doubling["minLength"] = 1;
  const std::string many = R"({"type":"array","items":{"type":"array","maxItems":100000000,
      "items":{"type":"array","maxItems":100000000}},"maxItems":1000000000})";
  for (const std::string& schema :
       {deep, doubling.dump(), many, std::string(R"({"maxItems":1000000000})"),
        std::string(R"({"type":"string","minLength":1000000000000})"),
        std::string(R"({"allOf":[{"$ref":"#"}],"type":"object"})"),
        std::string(R"({"$ref":"#","anyOf":[{"$ref":"#"},{"$ref":"#"}]})"),
        std::string(
            R"({"type":"string","pattern":"((a{1,1000}){1,1000}b?){1,1000}c*.*d.{30}e"})")}) {
    EXPECT_NE(Refusal(schema.c_str()), "") << schema.substr(0, 200);
  }
}

// Compared each with each, these take minutes.
TEST(JsonSchema, LongListsAreMergedAndBounded) {
  Json first = Json::array(), second = Json::array(), names = Json::array();
  for (int i = 0; i < 30000; ++i) {
    first.push_back(i);
    second.push_back(i + 29998);
    names.push_back(std::to_string(i));
  }
  const Json both = {{"allOf", {{{"enum", first}}, {{"enum", second}}}}};
  auto parsed = ParseJsonSchema(both);
  ASSERT_TRUE(parsed.ok()) << Message(parsed.status());
  EXPECT_EQ(Match(*parsed, "29999"), "ok");
  EXPECT_EQ(Match(*parsed, "30000"), "30000");
  const Json object = {{"type", "object"}, {"required", names}};
  EXPECT_THAT(Refusal(object.dump().c_str()), HasSubstr("'required' has 30000 names"));
  const Json twice = {{"allOf", {object, object}}};
  EXPECT_THAT(Refusal(twice.dump().c_str()), HasSubstr("'required' has 30000 names"));
  Json lists = Json::array();
  for (int i = 0; i < 40; ++i) lists.push_back({{"enum", first}});
  EXPECT_THAT(Message(ParseJsonSchema({{"anyOf", lists}}).status()), HasSubstr("parts"));
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kMostMegabytes = 1024;  // what is freed stays with the sanitizer
#else
constexpr int kMostMegabytes = 64;
#endif

// In a child, whose peak begins at what it holds.
int MegabytesToCompile(const Json& schema, const char* said) {
  const int64_t before = ReadResidentMemory().peak;
  const std::string refusal = Refusal(schema);
  if (refusal.find(said) == std::string::npos) {
    fmt::print(stderr, "{}\n", refusal);
    return -1;
  }
  return static_cast<int>((ReadResidentMemory().peak - before) >> 20);
}

// Schemas of at most 256 KiB whose parts are large where they are copied.
TEST(JsonSchema, CopiesArePaidForByTheirBytes) {
  Json many_merges = {{"id", {{"const", std::string(131000, 'x')}}}, {"anyOf", Json::array()}};
  for (int i = 0; i < 4500; ++i) many_merges["anyOf"].push_back({{"allOf", {{{"$ref", "#/id"}}}}});
  Json many_names = {{"additionalProperties", {{"const", std::string(200000, 'x')}}}};
  Json long_names = {{"properties", Json::object()}, {"additionalProperties", true}};
  for (int i = 0; i < 1000; ++i) {
    many_names["required"].push_back(std::to_string(i));
    long_names["properties"][std::to_string(i) + std::string(240, 'x')] = true;
  }
  const Json many_values = {{"const", Json(std::vector<int>(131000, 1))}};
  Json nested = {{"type", "no"}, {"x", Json(std::vector<Json>(80000, Json::array()))}};
  for (int i = 0; i < 31; ++i) nested = {{"properties", {{"x", std::move(nested)}}}};
  const std::pair<Json, const char*> schemas[] = {{many_merges, "bytes of text"},
                                                  {many_names, "bytes of text"},
                                                  {long_names, "parts"},
                                                  {many_values, "parts"},
                                                  {nested, "'type'"}};
  for (const auto& [schema, said] : schemas) {
    auto compile = [&, &schema = schema, &said = said] {
      const int megabytes = MegabytesToCompile(schema, said);
      fmt::print(stderr, "{} MB\n", megabytes);  // shown where it is too much
      std::_Exit(megabytes >= 0 && megabytes < kMostMegabytes ? 0 : 1);
    };
    EXPECT_EXIT(compile(), testing::ExitedWithCode(0), "") << schema.dump().substr(0, 100);
  }
}

TEST(JsonSchema, LargeOrdinaryOnesCompile) {
  Json words = Json::array(), properties = Json::object(), required = Json::array();
  for (int i = 0; i < 10000; ++i) words.push_back(fmt::format("word{}", i * 7919 % 100000));
  for (int i = 0; i < 300; ++i) {
    const std::string name = fmt::format("property_{}", i);
    properties[name] = {{"type", i % 3 == 0 ? "string" : i % 3 == 1 ? "integer" : "boolean"}};
    required.push_back(name);
  }
  const Json object = {{"type", "object"}, {"properties", properties}, {"required", required}};
  for (const Json& schema :
       {Json{{"enum", words}}, object, Json{{"type", "string"}, {"maxLength", 5000}}}) {
    EXPECT_EQ(Refusal(schema), "") << schema.dump().substr(0, 100);
  }
}

std::shared_ptr<const TokenTrie> Vocabulary(uint32_t seed) {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(std::string(1, static_cast<char>(byte)));
  std::mt19937 random(seed);
  static constexpr const char* kParts[] = {"\"", "\":", " ",  ",",  "{\"",  "}",    "]",    "name",
                                           "1",  "25",  "-",  "\\", "n",    "\xc3", "\xa9", "[",
                                           "e",  ".",   "\n", "x",  "null", "true"};
  for (int i = 0; i < 400; ++i) {
    std::string token;
    for (size_t j = 2 + random() % 3; j > 0; --j) token += kParts[random() % std::size(kParts)];
    tokens.push_back(token);
  }
  return std::make_shared<const TokenTrie>(
      std::vector<std::string_view>(tokens.begin(), tokens.end()));
}

TEST(JsonSchema, RandomWalksThroughMasksAreAlwaysValid) {
  const auto trie = Vocabulary(1);
  int walks = 0, whole = 0;
  for (uint32_t seed = 0; seed < 300; ++seed) {
    const Json schema = RandomSchema(seed).Make();
    auto parsed = ParseJsonSchema(schema);
    ASSERT_TRUE(parsed.ok()) << Message(parsed.status()) << schema;
    auto grammar = CompiledGrammar::Create(*parsed, trie);
    if (!grammar.ok()) {
      EXPECT_THAT(Message(grammar.status()), HasSubstr("no text matches")) << schema;
      continue;
    }
    std::mt19937 random(seed);
    std::vector<uint64_t> mask(trie->mask_words());
    TokenMatcher matcher(*grammar);
    std::string text;
    ++walks;
    for (int step = 0; step < 300; ++step) {
      ASSERT_TRUE(matcher.FillMask(mask).ok());
      std::vector<int32_t> allowed;
      for (int32_t id = 0; id < trie->vocab_size(); ++id) {
        if (mask[id / 64] >> (id % 64) & 1) allowed.push_back(id);
      }
      if (matcher.may_end() && (allowed.empty() || random() % 4 == 0)) break;
      ASSERT_FALSE(allowed.empty()) << schema << text;
      // Ends are sought, or texts of the recursive kind would seldom find theirs.
      int32_t next = allowed[random() % allowed.size()];
      for (int32_t closing : {int32_t{'"'}, int32_t{'}'}, int32_t{']'}}) {
        if (random() % 3 == 0 && (mask[closing / 64] >> (closing % 64) & 1)) next = closing;
      }
      ASSERT_TRUE(matcher.Accept(next).ok());
      text += trie->Bytes(next);
    }
    if (!matcher.may_end()) continue;
    ++whole;
    const Json value = Json::parse(text, nullptr, false);
    ASSERT_FALSE(value.is_discarded()) << schema << "\n" << text;
    ASSERT_TRUE(SchemaOracle(schema).Valid(value)) << schema << "\n" << text;
  }
  EXPECT_GT(walks, 200);
  EXPECT_GT(whole, 150);
}

TEST(JsonGrammar, AnyObject) {
  const Grammar object = JsonObjectGrammar();
  EXPECT_EQ(Match(object, R"({"a": {"b": [1, 2, {"c": "\u12ab\n"}]}, "d": 0.5})"), "ok");
  EXPECT_EQ(Match(object, "{}"), "ok");
  EXPECT_EQ(Match(object, "[]"), "[]");
  EXPECT_EQ(Match(object, "{\"a\":01}"), "1}");
  EXPECT_EQ(Match(object, "{\"a\":1,}"), "}");
  EXPECT_EQ(Match(object, "{\"a\":\"\n\"}"), "\n\"}");
  EXPECT_EQ(Match(JsonValueGrammar(), "[1,[2,[]]]"), "ok");
}

}  // namespace
}  // namespace cadre
