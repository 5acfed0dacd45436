// Grammar: rules over characters, as every front-end (GBNF, regular expressions, JSON schemas)
// writes them and the automaton (serving/grammar/automaton.h) reads them.
//
// Nodes lie in one array and name their children by index; a node may have several parents. A
// grammar is a value; one thread at a time while it is built.
//
//   Grammar g;
//   g.root = g.AddRule("root");
//   g.rules[g.root].body = g.Sequence({g.Bytes("\""), g.Repeat(g.Class({{'a', 'z'}}), 0, 8),
//                                      g.Bytes("\"")});
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre {

// Bounds on what strangers send, checked before memory is taken.
struct GrammarLimits {
  size_t max_text_bytes = size_t{1} << 18;  // of a schema, an expression or a grammar
  int max_nesting = 64;                     // of groups and schemas
  size_t max_nodes = size_t{1} << 17;
  size_t max_letters = size_t{1} << 19;  // bytes and ranges of characters inside of nodes
  size_t max_rules = 4096;
  int64_t max_states = int64_t{1} << 17;  // of the automaton, repetitions unrolled
  size_t max_bytes = size_t{1} << 23;     // of its states and edges
  int64_t max_work = int64_t{1} << 23;    // steps of making it deterministic
};

using NodeId = int32_t;
using RuleId = int32_t;

struct CodepointRange {
  uint32_t first = 0, last = 0;  // inclusive
  bool operator==(const CodepointRange&) const = default;
};

constexpr uint32_t kMaxCodepoint = 0x10FFFF;

enum class NodeKind : uint8_t {
  kBytes,     // `bytes`, exactly
  kClass,     // one character of `ranges`, as UTF-8; surrogates never match
  kSequence,  // children in order; none: the empty text
  kChoice,    // one of the children; none: nothing at all
  kRepeat,    // the child min..max times; max < 0: without end
  kRule,      // what `rule` derives
  // Some of the children in order, children[0] between any two of them: child i is left out only
  // where optional[i]. The last may repeat, min..max times, where it is `repeats`.
  kMembers,
  kUntil,  // any bytes up to and with the first occurrence of `bytes`
};

struct GrammarNode {
  NodeKind kind = NodeKind::kSequence;
  bool repeats = false;
  RuleId rule = -1;
  int64_t min = 0, max = -1;
  std::string bytes;
  std::vector<CodepointRange> ranges;  // sorted, apart
  std::vector<NodeId> children;
  std::vector<bool> optional;
};

struct GrammarRule {
  std::string name;
  NodeId body = -1;  // -1: not written yet
};

struct Grammar {
  std::vector<GrammarNode> nodes;
  std::vector<GrammarRule> rules;
  RuleId root = 0;

  RuleId AddRule(std::string name);
  NodeId Bytes(std::string_view bytes);
  NodeId Class(std::vector<CodepointRange> ranges);  // in any order
  NodeId Sequence(std::vector<NodeId> children);
  NodeId Choice(std::vector<NodeId> children);
  NodeId Repeat(NodeId child, int64_t min, int64_t max);
  NodeId Optional(NodeId child) { return Repeat(child, 0, 1); }
  NodeId Rule(RuleId rule);
  // `members` and `optional` have one size; `repeats` concerns the last.
  NodeId Members(NodeId separator, std::vector<NodeId> members, std::vector<bool> optional,
                 bool repeats = false);
  NodeId Until(std::string_view marker);

  // kInvalidArgument where there are more rules, nodes or letters in them than allowed. Looks only
  // at nodes that are new since the last time, so it may be asked after every part.
  absl::Status Check(const GrammarLimits& limits);

 private:
  NodeId Add(GrammarNode node);

  size_t checked_ = 0;  // nodes whose letters are counted
  size_t letters_ = 0;
};

// Sorted and merged.
std::vector<CodepointRange> Normalized(std::vector<CodepointRange> ranges);
// The characters that are in none of `ranges`, which are normalized.
std::vector<CodepointRange> Complement(const std::vector<CodepointRange>& ranges);
std::vector<CodepointRange> Without(const std::vector<CodepointRange>& ranges,
                                    const std::vector<CodepointRange>& removed);

// The character's UTF-8 bytes.
std::string Utf8(uint32_t codepoint);

// A class as sequences of byte ranges: exactly the UTF-8 of its characters, no surrogates.
struct ByteRange8 {
  uint8_t first = 0, last = 0;
  bool operator==(const ByteRange8&) const = default;
};
std::vector<std::vector<ByteRange8>> Utf8Sequences(const std::vector<CodepointRange>& ranges);

}  // namespace cadre
