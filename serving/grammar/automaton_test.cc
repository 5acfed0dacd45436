#include "serving/grammar/automaton.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace cadre {
namespace {

using testing::HasSubstr;

absl::Status Compile(const Grammar& g) { return CompileAutomaton(g, {}).status(); }

Grammar OneRule(auto make) {
  Grammar g;
  g.AddRule("root");
  const NodeId body = make(g);
  g.rules[0].body = body;
  return g;
}

TEST(CompileAutomaton, WhatNothingMatchesIsRefused) {
  EXPECT_THAT(Message(Compile(OneRule([](Grammar& g) {
                return g.Sequence({g.Bytes("a"), g.Rule(0)});
              }))),
              HasSubstr("no text matches"));
  EXPECT_THAT(Message(Compile(OneRule([](Grammar& g) { return g.Choice({}); }))),
              HasSubstr("no text matches"));
  EXPECT_THAT(Message(Compile(OneRule([](Grammar& g) {
                return g.Class({{0xD800, 0xDFFF}});
              }))),
              HasSubstr("no text matches"));
  EXPECT_TRUE(Compile(OneRule([](Grammar& g) { return g.Sequence({}); })).ok());
  EXPECT_FALSE(Compile(Grammar()).ok());
}

TEST(CompileAutomaton, RepetitionsThatUnrollTooFarAreRefusedBeforeMemoryIsTaken) {
  EXPECT_FALSE(Compile(OneRule([](Grammar& g) {
                 return g.Repeat(g.Class({{'a', 'z'}}), 0, 1000000000);
               })).ok());
  EXPECT_FALSE(Compile(OneRule([](Grammar& g) {
                 return g.Repeat(g.Bytes("abcdefgh"), INT64_MAX, INT64_MAX);
               })).ok());
  // Children that are shared count as often as they are used.
  auto doubled = [](Grammar& g) {
    NodeId node = g.Bytes("ab");
    for (int i = 0; i < 60; ++i) node = g.Sequence({node, node});
    return node;
  };
  EXPECT_FALSE(Compile(OneRule(doubled)).ok());
}

TEST(CompileAutomaton, SubsetsThatExplodeAreRefused) {
  // (a|b)*a(a|b){24}: 2^25 states.
  auto exploding = [](Grammar& g) {
    const NodeId any = g.Class({{'a', 'b'}});
    return g.Sequence({g.Repeat(any, 0, -1), g.Bytes("a"), g.Repeat(any, 24, 24)});
  };
  EXPECT_THAT(Message(Compile(OneRule(exploding))), HasSubstr("too complex"));
}

TEST(CompileAutomaton, ManyRulesCostAsMuchAsTheyAre) {
  constexpr int kRules = 4000;
  const auto letters = [](Grammar& g) {
    std::vector<NodeId> calls;
    for (int i = 0; i < kRules; ++i) {
      const RuleId rule = g.AddRule(fmt::format("r{}", i));
      g.rules[rule].body = g.Bytes(std::string(1, static_cast<char>('a' + i % 26)));
      calls.push_back(g.Rule(rule));
    }
    return g.Choice(calls);
  };
  // Looking at all calls of the first rule for each of them would be 16 million steps.
  const auto automaton = CompileAutomaton(OneRule(letters), {.max_work = 40 * kRules});
  ASSERT_TRUE(automaton.ok()) << Message(automaton.status());
  EXPECT_FALSE(CompileAutomaton(OneRule(letters), {.max_work = 5 * kRules}).ok());
}

TEST(CompileAutomaton, LongRepetitionsOfLargeParts) {
  // The part becomes a rule of its own.
  auto automaton = CompileAutomaton(OneRule([](Grammar& g) {
                                      NodeId part = g.Bytes(std::string(1000, 'a'));
                                      return g.Repeat(part, 0, 1000);
                                    }),
                                    {});
  ASSERT_TRUE(automaton.ok()) << Message(automaton.status());
  EXPECT_LT(automaton->states(), 5000);
}

TEST(CompileAutomaton, NestedRepetitionsStaySmall) {
  // 1000^12 times "ab".
  auto automaton = CompileAutomaton(OneRule([](Grammar& g) {
                                      NodeId node = g.Bytes("ab");
                                      for (int i = 0; i < 12; ++i)
                                        node = g.Repeat(node, 1000, 1000);
                                      return node;
                                    }),
                                    {});
  ASSERT_TRUE(automaton.ok()) << Message(automaton.status());
  EXPECT_LT(automaton->states(), 50000);
}

// Every other character from 1 on.
std::vector<CodepointRange> Comb(uint32_t teeth) {
  std::vector<CodepointRange> ranges;
  for (uint32_t i = 0; i < teeth; ++i) ranges.push_back({2 * i + 1, 2 * i + 1});
  return ranges;
}

TEST(CompileAutomaton, WideClassesAreBoundedInBytes) {
  // A rule of its own: repeated in place, its edges take 30 MB.
  auto automaton = CompileAutomaton(
      OneRule([](Grammar& g) { return g.Repeat(g.Class(Comb(64)), 60000, 60000); }), {});
  ASSERT_TRUE(automaton.ok()) << Message(automaton.status());
  EXPECT_LT(automaton->MemoryBytes(), size_t{2} << 20);
  // Small enough to be repeated in place, and 10 MB there.
  EXPECT_THAT(Message(Compile(
                  OneRule([](Grammar& g) { return g.Repeat(g.Class(Comb(24)), 50000, 50000); }))),
              HasSubstr("8388608 bytes"));
}

TEST(Automaton, EdgesAreFoundWhereverTheyStand) {
  std::mt19937 random(1);
  for (int round = 0; round < 50; ++round) {
    auto automaton = CompileAutomaton(
        OneRule([&](Grammar& g) {
          std::vector<NodeId> choices;
          for (size_t i = random() % 150; i < 150; ++i) {
            const uint32_t first = random() % 128;
            const uint32_t last = first + random() % 3;
            choices.push_back(
                g.Sequence({g.Class({{first, last}}), g.Bytes(std::to_string(random() % 9))}));
          }
          return g.Choice(std::move(choices));
        }),
        {});
    ASSERT_TRUE(automaton.ok()) << Message(automaton.status());
    for (int32_t id = 0; id < automaton->states(); ++id) {
      const Automaton::State& state = automaton->state(id);
      for (int byte = 0; byte < 256; ++byte) {
        int32_t target = -1;
        for (const Automaton::ByteEdge& edge : automaton->bytes(state)) {
          if (byte >= edge.first && byte <= edge.last) target = edge.target;
        }
        ASSERT_EQ(automaton->Target(state, static_cast<uint8_t>(byte)), target) << byte;
      }
    }
  }
}

TEST(Utf8Sequences, CoverEveryCharacterOnceAndNothingElse) {
  for (const CodepointRange& range : std::vector<CodepointRange>{{0, kMaxCodepoint},
                                                                 {0x7F, 0x80},
                                                                 {0x7FF, 0x10001},
                                                                 {0x123, 0x20345},
                                                                 {0xD700, 0xE001}}) {
    const auto sequences = Utf8Sequences({range});
    size_t texts = 0;
    for (const auto& sequence : sequences) {
      size_t product = 1;
      for (const ByteRange8& byte : sequence) product *= size_t{byte.last} - byte.first + 1;
      texts += product;
    }
    const size_t surrogates =
        range.first <= 0xD800 && range.last >= 0xDFFF ? 0xDFFF - 0xD800 + 1 : 0;
    EXPECT_EQ(texts, range.last - range.first + 1 - surrogates);
    for (uint32_t c = range.first; c <= range.last; ++c) {
      if (c >= 0xD800 && c <= 0xDFFF) continue;
      const std::string bytes = Utf8(c);
      int fits = 0;
      for (const auto& sequence : sequences) {
        bool fit = sequence.size() == bytes.size();
        for (size_t i = 0; fit && i < bytes.size(); ++i) {
          const auto byte = static_cast<uint8_t>(bytes[i]);
          fit = byte >= sequence[i].first && byte <= sequence[i].last;
        }
        fits += fit;
      }
      ASSERT_EQ(fits, 1) << c;
    }
  }
}

TEST(CodepointRanges, SetsOfCharacters) {
  using Ranges = std::vector<CodepointRange>;
  EXPECT_EQ(Normalized({{5, 9}, {1, 3}, {4, 4}, {7, 12}}), (Ranges{{1, 12}}));
  EXPECT_EQ(Complement({}), (Ranges{{0, kMaxCodepoint}}));
  EXPECT_EQ(Complement({{0, kMaxCodepoint}}), Ranges());
  EXPECT_EQ(Without({{1, 10}}, {{3, 4}, {10, 20}}), (Ranges{{1, 2}, {5, 9}}));
}

}  // namespace
}  // namespace cadre
