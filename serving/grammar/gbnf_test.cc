#include "serving/grammar/gbnf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serving/grammar/grammar_cache.h"

namespace cadre {
namespace {

using testing::HasSubstr;

std::string Match(std::string_view grammar, std::string_view text) {
  auto parsed = ParseGbnf(grammar);
  if (!parsed.ok()) return Message(parsed.status());
  auto automaton = CompileAutomaton(*parsed, {});
  if (!automaton.ok()) return Message(automaton.status());
  GrammarWalk walk(*automaton);
  for (size_t i = 0; i < text.size(); ++i) {
    if (!walk.Step(static_cast<uint8_t>(text[i]))) return std::string(text.substr(i));
  }
  return walk.at_end() ? "ok" : "prefix";
}

TEST(Gbnf, ArithmeticWithLeftRecursion) {
  const char* grammar = R"G(
# sums of products
root ::= expr "\n"?
expr ::= expr [-+] term |   # left recursion
         term
term ::= (
  factor |
  term ("*" | "/") factor )
factor ::= [0-9]{1,3} | "(" expr ")" )G";
  EXPECT_EQ(Match(grammar, "1+2*(3-45)/6\n"), "ok");
  EXPECT_EQ(Match(grammar, "((1)"), "prefix");
  EXPECT_EQ(Match(grammar, "1234"), "4");
  EXPECT_EQ(Match(grammar, "1+*2"), "*2");
}

TEST(Gbnf, LiteralsClassesAndRepetitions) {
  EXPECT_EQ(Match(R"G(root ::= "\"\x41\u00e9\U0001F600" [^\]a-c]+ .)G",
                  "\"A\xc3\xa9\xf0\x9f\x98\x80zz\xe2\x82\xac"),
            "ok");
  EXPECT_EQ(Match(R"(root ::= [^\]a-c])", "]"), "]");
  EXPECT_EQ(Match("root ::= (\"ab\"){2,}", "abab"), "ok");
  EXPECT_EQ(Match("root ::= \"a\"{2}", "aaa"), "a");
  EXPECT_EQ(Match("root ::= \"a\"{,2} \"b\"", "aab"), "ok");
  EXPECT_EQ(Match("root ::= ((\"a\"*)*)* \"b\"", "aaab"), "ok");
  EXPECT_EQ(Match("root ::= \"\" | x\nx ::= root", ""), "ok");
}

TEST(Gbnf, MistakesAreNamedWithTheirPlace) {
  for (const auto& [grammar, message] : std::vector<std::pair<std::string, std::string>>{
           {"", "no rule 'root'"},
           {"root ::= a", "'a' is used and not defined"},
           {"root ::= \"a\"\nroot ::= \"b\"", "'root' is defined twice"},
           {"root ::= \"a", "line 1, column 10: a '\"' without its end"},
           {"root ::= (\"a\"", "without its ')'"},
           {"root ::= [a", "without its ']'"},
           {"root ::= [b-a]", "is empty"},
           {"root ::= \"\\q\"", "escape"},
           {"root ::= \"\\ud800\"", "surrogate"},
           {"root = \"a\"", "'::='"},
           {"root ::= \"a\"{3,2}", "exchanged"},
           {"root ::= \"a\"{9999999999}", "below 10^9"},
           {"root ::= \"a\"{0,999999999}", "too large"},
           {"root ::= <think>", "token references"},
           {"root ::= \"a\" ) ", "line break"},
           {"root ::= root", "no text matches"},
           {"root ::= \xff", "not UTF-8"},
           {std::string(1 << 19, '#'), "bytes, allowed"},
           {"root ::= " + std::string(100, '('), "nested deeper"},
           {"root ::= \"a\"" + std::string(100, '*'), "too many repetitions"}}) {
    EXPECT_THAT(Match(grammar, ""), HasSubstr(message)) << grammar.substr(0, 100);
  }
}

TEST(GrammarCache, KeepsTheLatestInBounds) {
  const std::vector<std::string_view> tokens = {"a", "b"};
  GrammarCache cache(std::make_shared<const TokenTrie>(tokens), {.max_grammars = 2});
  int built = 0;
  auto get = [&](const std::string& text) {
    return cache.Get(text, [&] {
      ++built;
      return ParseGbnf(text);
    });
  };
  auto first = get("root ::= \"a\"");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*get("root ::= \"a\""), *first);
  EXPECT_EQ(built, 1);
  EXPECT_FALSE(get("root ::= ").ok() && false);
  ASSERT_TRUE(get("root ::= \"b\"").ok());
  ASSERT_TRUE(get("root ::= \"a\"").ok() && get("root ::= \"ab\"").ok());
  EXPECT_EQ(cache.size(), 2u);
  const int before = built;
  ASSERT_TRUE(get("root ::= \"b\"").ok());  // was the one unused for longest
  EXPECT_EQ(built, before + 1);
  EXPECT_FALSE(get("root ::= x").ok());
  EXPECT_FALSE(get("root ::= x").ok());
  EXPECT_EQ(built, before + 3);
  GrammarCache small(std::make_shared<const TokenTrie>(tokens), {.max_bytes = 10});
  EXPECT_TRUE(small.Get("k", [] { return ParseGbnf("root ::= \"a\""); }).ok());
  EXPECT_EQ(small.size(), 0u);
}

TEST(GrammarCache, BoundsThoseThatOthersHold) {
  const std::vector<std::string_view> tokens = {"a", "b"};
  GrammarCache cache(std::make_shared<const TokenTrie>(tokens),
                     {.max_grammars = 1, .max_live_bytes = 1000});
  auto get = [&](int count) {
    return cache.Get(std::to_string(count),
                     [&] { return ParseGbnf(fmt::format("root ::= \"a\"{{{}}}", count)); });
  };
  std::vector<std::shared_ptr<const CompiledGrammar>> held;
  size_t bytes = 0;
  for (int count = 10; bytes <= 1000; ++count) {
    auto grammar = get(count);
    ASSERT_TRUE(grammar.ok()) << Message(grammar.status());
    bytes += (*grammar)->MemoryBytes();
    held.push_back(*std::move(grammar));
  }
  EXPECT_GE(held.size(), 2u);
  EXPECT_EQ(get(5).status().code(), absl::StatusCode::kResourceExhausted);
  const int last = 10 + static_cast<int>(held.size()) - 1;
  EXPECT_EQ(*get(last), held.back());  // is there already
  held.clear();
  EXPECT_TRUE(get(5).ok());
}

}  // namespace
}  // namespace cadre
