// Masks and ends against grammar_oracle.h, over random grammars and vocabularies.
#include "serving/grammar/matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "serving/grammar/compiled_grammar.h"
#include "serving/grammar/grammar_oracle.h"

namespace cadre {
namespace {

// A few letters, and characters of two, three and four bytes that share beginnings.
constexpr uint32_t kLetters[] = {'a', 'b', 'c', 0xE9, 0xEA, 0x20AC, 0x1F600};

class RandomGrammar {
 public:
  explicit RandomGrammar(uint32_t seed) : random_(seed) {}

  int Below(int count) { return static_cast<int>(random_() % static_cast<uint32_t>(count)); }
  std::string Letter() { return Utf8(kLetters[Below(7)]); }

  Grammar Make() {
    g_ = {};
    const int rules = 1 + Below(4);
    for (int i = 0; i < rules; ++i) g_.AddRule("r" + std::to_string(i));
    for (int i = 0; i < rules; ++i) {
      const NodeId body = MakeNode(3);
      g_.rules[i].body = body;
    }
    return g_;
  }

  std::vector<std::string> Vocabulary() {
    std::vector<std::string> tokens{"a", "b", "c", ""};
    for (int byte = 0x80; byte < 256; ++byte) tokens.push_back(std::string(1, char(byte)));
    for (int i = 0; i < 60; ++i) {
      std::string bytes;
      const int letters = 1 + Below(4);
      for (int j = 0; j < letters; ++j) bytes += Letter();
      // Half of them begin or end amid a character.
      if (Below(2) == 0) bytes = bytes.substr(static_cast<size_t>(Below(2)), 1 + Below(6));
      tokens.push_back(bytes);
    }
    tokens.push_back(tokens.back());  // two ids, one text
    return tokens;
  }

 private:
  NodeId MakeNode(int depth) {
    switch (Below(depth == 0 ? 3 : 9)) {
      case 0:
        return g_.Bytes(Below(5) == 0 ? "" : Letter() + (Below(2) == 0 ? Letter() : ""));
      case 1:
        return g_.Class({{kLetters[Below(3)], 'c'}, {0xE8, 0xEA}});
      case 2:
        return g_.Rule(Below(static_cast<int>(g_.rules.size())));
      case 3:
      case 4:
        return g_.Sequence(Children(depth));
      case 5:
      case 6:
        return g_.Choice(Children(depth));
      case 7: {
        const int min = Below(3);
        return g_.Repeat(MakeNode(depth - 1), min, Below(2) == 0 ? -1 : min + Below(3));
      }
      default:
        return MakeMembers(depth);
    }
  }
  std::vector<NodeId> Children(int depth) {
    std::vector<NodeId> children;
    for (int i = 1 + Below(3); i > 0; --i) children.push_back(MakeNode(depth - 1));
    return children;
  }
  NodeId MakeMembers(int depth) {
    if (Below(4) == 0) return g_.Until(Letter() + Letter());
    std::vector<NodeId> members = Children(depth);
    std::vector<bool> optional;
    for (size_t i = 0; i < members.size(); ++i) optional.push_back(Below(2) == 0);
    return g_.Members(g_.Bytes(Letter()), members, optional, Below(3) == 0);
  }

  std::mt19937 random_;
  Grammar g_;
};

std::shared_ptr<const TokenTrie> TrieOf(const std::vector<std::string>& tokens) {
  return std::make_shared<const TokenTrie>(
      std::vector<std::string_view>(tokens.begin(), tokens.end()));
}

bool Bit(const std::vector<uint64_t>& mask, size_t i) { return mask[i / 64] >> (i % 64) & 1; }

TEST(TokenMatcher, MasksAreThoseOfBruteForceOverRandomGrammars) {
  int compiled = 0, compared = 0, allowed = 0;
  for (uint32_t seed = 0; seed < 120; ++seed) {
    RandomGrammar random(seed);
    const Grammar g = random.Make();
    const std::vector<std::string> tokens = random.Vocabulary();
    auto grammar = CompiledGrammar::Create(g, TrieOf(tokens));
    if (!grammar.ok()) {
      EXPECT_FALSE(GrammarOracle(g, "").Viable()) << seed << Message(grammar.status());
      continue;
    }
    ++compiled;
    TokenMatcher matcher(*grammar);
    std::string text;
    for (int step = 0; step < 4; ++step) {
      std::vector<uint64_t> mask((*grammar)->trie().mask_words());
      ASSERT_TRUE(matcher.FillMask(mask).ok());
      ASSERT_EQ(matcher.may_end(), GrammarOracle(g, text).Matches()) << seed << ": " << text;
      std::vector<int32_t> candidates;
      for (size_t id = 0; id < tokens.size(); ++id) {
        const bool expected = !tokens[id].empty() && GrammarOracle(g, text + tokens[id]).Viable();
        ASSERT_EQ(Bit(mask, id), expected) << seed << ": " << text << "|" << tokens[id];
        if (expected) candidates.push_back(static_cast<int32_t>(id));
        ++compared;
      }
      // Every byte is a token, so a text that is not whole can go on.
      ASSERT_TRUE(matcher.may_end() || !candidates.empty()) << seed << ": " << text;
      allowed += static_cast<int>(candidates.size());
      if (candidates.empty()) break;
      const int32_t next = candidates[random.Below(static_cast<int>(candidates.size()))];
      ASSERT_TRUE(matcher.Accept(next).ok());
      text += tokens[next];
    }
  }
  EXPECT_GT(compiled, 70);
  EXPECT_GT(compared, 30000);
  EXPECT_GT(allowed, 2000);
}

TEST(TokenMatcher, ATokenThatMayNotComeLeavesTheMatcherWhereItWas) {
  Grammar g;
  g.AddRule("root");
  const NodeId body = g.Sequence({g.Bytes("ab"), g.Rule(0)});
  g.rules[0].body = g.Choice({body, g.Bytes("c")});
  auto grammar = CompiledGrammar::Create(g, TrieOf({"a", "b", "c", "abac", "abc", ""}));
  ASSERT_TRUE(grammar.ok());
  TokenMatcher matcher(*grammar);
  EXPECT_FALSE(matcher.Accept(1).ok());
  EXPECT_FALSE(matcher.Accept(3).ok());
  EXPECT_FALSE(matcher.Accept(5).ok());
  EXPECT_FALSE(matcher.Accept(-1).ok());
  EXPECT_FALSE(matcher.Accept(6).ok());
  EXPECT_TRUE(matcher.Accept(0).ok());
  TokenMatcher copy = matcher;
  EXPECT_TRUE(matcher.Accept(1).ok());
  EXPECT_TRUE(matcher.Accept(4).ok());
  EXPECT_TRUE(matcher.may_end());
  EXPECT_FALSE(copy.may_end());
  EXPECT_FALSE(copy.Accept(2).ok());
}

TEST(GrammarWalk, FramesThatNoParseNeedsAreLetGo) {
  // root ::= "(" root ")" root | ""
  Grammar g;
  g.AddRule("root");
  const NodeId body = g.Sequence({g.Bytes("("), g.Rule(0), g.Bytes(")"), g.Rule(0)});
  g.rules[0].body = g.Choice({body, g.Sequence({})});
  auto automaton = CompileAutomaton(g, {});
  ASSERT_TRUE(automaton.ok());
  GrammarWalk walk(*automaton);
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(walk.Step('('));
    ASSERT_TRUE(walk.Step(')'));
    walk.Settle();
    ASSERT_TRUE(walk.at_end());
  }
  EXPECT_LT(walk.frames(), 10u);
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(walk.Step('('));
  EXPECT_FALSE(walk.at_end());
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(walk.Step(')'));
  EXPECT_TRUE(walk.at_end());
  EXPECT_FALSE(walk.Step(')'));
}

TEST(GrammarWalk, AmbiguityIsBounded) {
  // root ::= root root root | root root | "a" | "": nearly every way to bracket a text.
  Grammar g;
  g.AddRule("root");
  const NodeId two = g.Sequence({g.Rule(0), g.Rule(0)});
  const NodeId three = g.Sequence({g.Rule(0), g.Rule(0), g.Rule(0)});
  g.rules[0].body = g.Choice({two, three, g.Bytes("a"), g.Sequence({})});
  auto grammar = CompiledGrammar::Create(g, TrieOf({"a", "aa", "aaaaaaaaaaaaaaaa"}));
  ASSERT_TRUE(grammar.ok()) << Message(grammar.status());
  TokenMatcher matcher(*grammar);
  std::vector<uint64_t> mask(1);
  absl::Status status;
  for (int i = 0; i < 500 && status.ok(); ++i) {
    status = matcher.Accept(2);
    if (status.ok()) status = matcher.FillMask(mask);
    if (status.ok()) {
      EXPECT_EQ(mask[0], 7u);
    }
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << Message(status);
}

}  // namespace
}  // namespace cadre
