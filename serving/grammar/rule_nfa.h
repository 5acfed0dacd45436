// One rule of a grammar as a nondeterministic automaton: the step between the grammar and
// serving/grammar/automaton.h. For automaton.cc.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "serving/grammar/grammar.h"

namespace cadre {

struct RuleNfa {
  struct Edge {
    uint8_t first, last;
    int32_t target;
  };
  struct Call {
    RuleId rule;
    int32_t target;
  };
  struct State {
    std::vector<Edge> bytes;
    std::vector<Call> calls;
    std::vector<int32_t> free;  // reached at no cost
  };
  std::vector<State> states;
  int32_t start = 0, end = 0;
};

// Writes rules as automata. Bodies that would grow too large where they are repeated become rules
// of their own.
class NfaWriter {
 public:
  // The grammar may get further rules.
  NfaWriter(Grammar& grammar, const GrammarLimits& limits);

  // States that the node costs, edges of classes counting an eighth of one; saturates at kTooLarge.
  static constexpr int64_t kTooLarge = int64_t{1} << 40;
  int64_t Size(NodeId node);

  RuleNfa Write(NodeId body);

 private:
  int64_t Measure(NodeId node);
  int64_t MeasureRepeat(const GrammarNode& node);
  // Appends what the node matches behind `from`; the state it ends in. Nothing leads back to
  // `from`.
  int32_t Append(NodeId node, int32_t from);
  int32_t AppendClass(const GrammarNode& node, int32_t from);
  int32_t AppendChoice(const GrammarNode& node, int32_t from);
  int32_t AppendRepeat(const GrammarNode& node, int32_t from);
  int32_t AppendMembers(const GrammarNode& node, int32_t from);
  int32_t AppendUntil(const GrammarNode& node, int32_t from);
  int32_t NewState();
  void Free(int32_t from, int32_t to) { nfa_.states[from].free.push_back(to); }
  bool Hoists(int64_t child_size, int64_t count) const;
  NodeId Hoist(NodeId child);

  Grammar& grammar_;
  const GrammarLimits& limits_;
  std::vector<int64_t> sizes_;   // by node; -1: not measured
  std::vector<NodeId> hoisted_;  // by node; the call of its rule, or -1
  RuleNfa nfa_;
};

}  // namespace cadre
