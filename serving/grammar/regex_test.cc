#include "serving/grammar/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <regex>

#include "serving/grammar/matcher.h"

namespace cadre {
namespace {

using testing::HasSubstr;

std::string Match(std::string_view pattern, std::string_view text) {
  auto parsed = ParseRegex(pattern);
  if (!parsed.ok()) return Message(parsed.status());
  auto automaton = CompileAutomaton(*parsed, {});
  if (!automaton.ok()) return Message(automaton.status());
  GrammarWalk walk(*automaton);
  for (char c : text) {
    if (!walk.Step(static_cast<uint8_t>(c))) return "no";
  }
  return walk.at_end() ? "yes" : "no";
}

TEST(Regex, AgreesWithTheStandardLibrary) {
  std::mt19937 random(7);
  static constexpr const char* kParts[] = {
      "a",  "b", "[ab]", "[^a]", "\\d", ".", "(ab|c)", "(?:b)",      "\\w",         "a*",  "b+?",
      "c?", "|", "1",    "(a|)", "\\.", "{", "c{2}",   "(b{1,2}a)*", "[a-c1]{0,2}", "\\W", "\\s"};
  int matches = 0;
  for (int round = 0; round < 400; ++round) {
    std::string pattern;
    for (size_t i = 1 + random() % 5; i > 0; --i) pattern += kParts[random() % std::size(kParts)];
    if (pattern.find('{') != std::string::npos && pattern.find("{1") == std::string::npos &&
        pattern.find("{0") == std::string::npos && pattern.find("{2") == std::string::npos) {
      continue;  // std::regex wants a lone brace escaped
    }
    std::unique_ptr<std::regex> expected;
    try {
      expected = std::make_unique<std::regex>(pattern);
    } catch (const std::regex_error&) {
      continue;
    }
    for (int i = 0; i < 40; ++i) {
      std::string text;
      for (size_t j = random() % 6; j > 0; --j) text += "abc1. "[random() % 6];
      const bool yes = std::regex_match(text, *expected);
      ASSERT_EQ(Match(pattern, text), yes ? "yes" : "no") << pattern << " on '" << text << "'";
      matches += yes;
    }
  }
  EXPECT_GT(matches, 500);
}

TEST(Regex, EscapesAndCharactersBeyondAscii) {
  EXPECT_EQ(Match("\\u00e9\\x41\\u{1F600}[\\u4e00-\\u9fff]+",
                  "\xc3\xa9\x41\xf0\x9f\x98\x80\xe4\xb8\xad\xe6\x96\x87"),
            "yes");
  EXPECT_EQ(Match(".", "\xf0\x9f\x98\x80"), "yes");
  EXPECT_EQ(Match(".", "\n"), "no");
  EXPECT_EQ(Match("[^a]", "\xc3"), "no");
  EXPECT_EQ(Match("^a$|^b$", "b"), "yes");
  EXPECT_EQ(Match("(?P<x>a)(?<y>b)", "ab"), "yes");
  EXPECT_EQ(Match("[\\d\\-x\\]]+", "1-x]"), "yes");
  EXPECT_EQ(Match("\\{a\\}{2}", "{a}}"), "yes");
}

TEST(Regex, WhatIsNotSupportedIsRefusedByName) {
  for (const auto& [pattern, message] : std::vector<std::pair<std::string, std::string>>{
           {"(a)\\1", "column 4: back-references"},
           {"\\k<x>", "back-references"},
           {"(?=a)", "look-around"},
           {"(?<!a)b", "look-around"},
           {"(?i)a", "inline flags"},
           {"a++", "possessive"},
           {"\\bword\\b", "word borders"},
           {"\\p{L}", "Unicode properties"},
           {"[[:alpha:]]", "POSIX"},
           {"(^a)", "outside groups"},
           {"a$b", "outside groups"},
           {"*a", "nothing to repeat"},
           {"a**", "nothing to repeat"},
           {"(a", "without its ')'"},
           {"a)", "without its '('"},
           {"[a", "without its ']'"},
           {"[b-a]", "empty"},
           {"a{2,1}", "exchanged"},
           {"a\\", "escape"},
           {"\\q", "escape"},
           {"((a{0,9999}){0,9999}){0,9999}{0,9999}", ""},
           {std::string(200, '('), "nested deeper"},
           {"(.*a){1}.*b.{40}c", "too complex"},
           {"\xc3", "not UTF-8"}}) {
    const std::string answer = Match(pattern, "");
    EXPECT_NE(answer, "yes") << pattern;
    EXPECT_THAT(answer, HasSubstr(message)) << pattern.substr(0, 100);
  }
}

}  // namespace
}  // namespace cadre
