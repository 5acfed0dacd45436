#include "serving/grammar/automaton.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <map>
#include <string>

#include "serving/grammar/rule_nfa.h"

namespace cadre {

// Makes each rule deterministic by the subset construction, calls being letters like bytes, then
// cuts off what can reach no end.
class AutomatonBuilder {
 public:
  AutomatonBuilder(Grammar grammar, const GrammarLimits& limits)
      : grammar_(std::move(grammar)), limits_(limits), writer_(grammar_, limits_) {}

  absl::StatusOr<Automaton> Build();

 private:
  struct DfaState {
    std::vector<Automaton::ByteEdge> bytes;
    std::vector<Automaton::CallEdge> calls;  // `start` holds the rule until Link
    bool final = false;
  };
  using Subset = std::vector<int32_t>;

  absl::Status AddRule(RuleId rule);
  absl::Status Expand(const RuleNfa& nfa, int32_t id, const Subset& subset);
  absl::Status ExpandBytes(const RuleNfa& nfa, int32_t id, const Subset& subset);
  int32_t StateOf(const RuleNfa& nfa, Subset targets);
  Subset Closure(const RuleNfa& nfa, Subset states);
  absl::Status Spend(size_t work);
  // By state: whether its rule's end can be reached from it.
  absl::StatusOr<std::vector<bool>> Productive();
  Automaton Pack(const std::vector<bool>& productive) const;

  Grammar grammar_;
  const GrammarLimits limits_;
  NfaWriter writer_;
  std::vector<DfaState> states_;
  std::vector<int32_t> starts_;  // by rule
  // Of the rule at hand.
  absl::flat_hash_map<Subset, int32_t> known_;
  std::vector<Subset> pending_;
  std::vector<char> seen_;
  int64_t work_ = 0;
  size_t edges_ = 0;
};

absl::Status AutomatonBuilder::Spend(size_t work) {
  work_ += static_cast<int64_t>(work);
  static_assert(sizeof(Automaton::ByteEdge) == sizeof(Automaton::CallEdge));
  const size_t bytes =
      states_.size() * sizeof(Automaton::State) + edges_ * sizeof(Automaton::ByteEdge);
  if (work_ <= limits_.max_work && static_cast<int64_t>(states_.size()) <= limits_.max_states &&
      bytes <= limits_.max_bytes) {
    return absl::OkStatus();
  }
  return InvalidArgument(
      "the grammar is too complex: its repetitions and alternatives need more than {} states, {} "
      "bytes or {} steps",
      limits_.max_states, limits_.max_bytes, limits_.max_work);
}

AutomatonBuilder::Subset AutomatonBuilder::Closure(const RuleNfa& nfa, Subset states) {
  seen_.resize(nfa.states.size(), 0);
  Subset reached;
  for (int32_t s : states) {
    if (!seen_[s]) reached.push_back(s);
    seen_[s] = 1;
  }
  for (size_t i = 0; i < reached.size(); ++i) {
    for (int32_t next : nfa.states[reached[i]].free) {
      if (!seen_[next]) reached.push_back(next);
      seen_[next] = 1;
    }
  }
  for (int32_t s : reached) seen_[s] = 0;
  work_ += static_cast<int64_t>(reached.size());
  // What only leads elsewhere at no cost tells no two subsets apart.
  std::erase_if(reached, [&](int32_t s) {
    return s != nfa.end && nfa.states[s].bytes.empty() && nfa.states[s].calls.empty();
  });
  std::ranges::sort(reached);
  return reached;
}

int32_t AutomatonBuilder::StateOf(const RuleNfa& nfa, Subset targets) {
  Subset subset = Closure(nfa, std::move(targets));
  const auto [it, fresh] = known_.try_emplace(subset, static_cast<int32_t>(states_.size()));
  if (fresh) {
    states_.emplace_back();
    states_.back().final = std::ranges::binary_search(subset, nfa.end);
    pending_.push_back(std::move(subset));
  }
  return it->second;
}

absl::Status AutomatonBuilder::ExpandBytes(const RuleNfa& nfa, int32_t id, const Subset& subset) {
  std::vector<RuleNfa::Edge> edges;
  for (int32_t s : subset) {
    edges.insert(edges.end(), nfa.states[s].bytes.begin(), nfa.states[s].bytes.end());
  }
  std::ranges::sort(edges, {}, &RuleNfa::Edge::first);
  std::vector<bool> begins(257, false);
  for (const RuleNfa::Edge& edge : edges) begins[edge.first] = begins[edge.last + 1] = true;
  std::vector<RuleNfa::Edge> active;
  size_t next = 0;
  for (int first = 0; first < 256;) {
    int last = first;
    while (last < 255 && !begins[last + 1]) ++last;
    std::erase_if(active, [&](const RuleNfa::Edge& edge) { return edge.last < first; });
    while (next < edges.size() && edges[next].first <= first) active.push_back(edges[next++]);
    if (!active.empty()) {
      Subset targets;
      for (const RuleNfa::Edge& edge : active) targets.push_back(edge.target);
      CADRE_RETURN_IF_ERROR(Spend(targets.size()));
      const int32_t target = StateOf(nfa, std::move(targets));
      auto& out = states_[id].bytes;
      if (!out.empty() && out.back().target == target && out.back().last + 1 == first) {
        out.back().last = static_cast<uint8_t>(last);
      } else {
        out.push_back({static_cast<uint8_t>(first), static_cast<uint8_t>(last), target});
        ++edges_;
      }
    }
    first = last + 1;
  }
  return absl::OkStatus();
}

absl::Status AutomatonBuilder::Expand(const RuleNfa& nfa, int32_t id, const Subset& subset) {
  CADRE_RETURN_IF_ERROR(Spend(subset.size()));
  CADRE_RETURN_IF_ERROR(ExpandBytes(nfa, id, subset));
  std::map<RuleId, Subset> calls;
  for (int32_t s : subset) {
    for (const RuleNfa::Call& call : nfa.states[s].calls) calls[call.rule].push_back(call.target);
  }
  for (auto& [rule, targets] : calls) {
    CADRE_RETURN_IF_ERROR(Spend(targets.size()));
    const int32_t target = StateOf(nfa, std::move(targets));
    states_[id].calls.push_back({rule, target});
    ++edges_;
  }
  return absl::OkStatus();
}

absl::Status AutomatonBuilder::AddRule(RuleId rule) {
  const NodeId body = grammar_.rules[rule].body;
  if (body < 0) return InvalidArgument("the rule '{}' is not defined", grammar_.rules[rule].name);
  const int64_t size = writer_.Size(body);
  // Parts of one text size are often shared by many subsets, so the bound is a little wider here.
  if (size > limits_.max_states * 2) {
    return InvalidArgument(
        "the grammar is too large: with its repetitions unrolled it has the size of {} states{}, "
        "allowed are {}",
        size, size == NfaWriter::kTooLarge ? " or more" : "", limits_.max_states);
  }
  CADRE_RETURN_IF_ERROR(Spend(static_cast<size_t>(size)));
  const RuleNfa nfa = writer_.Write(body);
  CADRE_RETURN_IF_ERROR(grammar_.Check(limits_));  // hoisting adds rules
  known_.clear();
  pending_.clear();
  const auto first = static_cast<int32_t>(states_.size());
  starts_.push_back(first);
  StateOf(nfa, {nfa.start});
  for (size_t i = 0; i < pending_.size(); ++i) {
    const Subset subset = std::move(pending_[i]);
    CADRE_RETURN_IF_ERROR(Expand(nfa, first + static_cast<int32_t>(i), subset));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<bool>> AutomatonBuilder::Productive() {
  // Who waits for a state: by a byte, or by a call whose rule begins there or that leads there.
  struct Waiting {
    int32_t state;
    int32_t call;  // of the state's, or -1
  };
  std::vector<std::vector<Waiting>> waiting(states_.size());
  for (size_t s = 0; s < states_.size(); ++s) {
    const auto self = static_cast<int32_t>(s);
    for (const auto& edge : states_[s].bytes) waiting[edge.target].push_back({self, -1});
    for (size_t c = 0; c < states_[s].calls.size(); ++c) {
      const Automaton::CallEdge& call = states_[s].calls[c];
      waiting[call.target].push_back({self, static_cast<int32_t>(c)});
      waiting[starts_[call.start]].push_back({self, static_cast<int32_t>(c)});
    }
  }
  std::vector<bool> good(states_.size(), false);
  std::vector<int32_t> queue;
  auto mark = [&](int32_t s) {
    if (!good[s]) queue.push_back(s);
    good[s] = true;
  };
  for (size_t s = 0; s < states_.size(); ++s) {
    if (states_[s].final) mark(static_cast<int32_t>(s));
  }
  while (!queue.empty()) {
    const int32_t reached = queue.back();
    queue.pop_back();
    CADRE_RETURN_IF_ERROR(Spend(waiting[reached].size()));
    for (const auto& [s, c] : waiting[reached]) {
      if (c < 0) {
        mark(s);
        continue;
      }
      const Automaton::CallEdge& call = states_[s].calls[c];
      if (good[call.target] && good[starts_[call.start]]) mark(s);
    }
  }
  return good;
}

Automaton AutomatonBuilder::Pack(const std::vector<bool>& productive) const {
  Automaton packed;
  packed.start_ = starts_[grammar_.root];
  for (const DfaState& state : states_) {
    Automaton::State out{.bytes_begin = static_cast<int32_t>(packed.bytes_.size()),
                         .calls_begin = static_cast<int32_t>(packed.calls_.size()),
                         .final = state.final};
    for (const auto& edge : state.bytes) {
      if (productive[edge.target]) packed.bytes_.push_back(edge);
    }
    for (const auto& call : state.calls) {
      const int32_t start = starts_[call.start];
      if (productive[start] && productive[call.target]) {
        packed.calls_.push_back({start, call.target});
      }
    }
    out.bytes_end = static_cast<int32_t>(packed.bytes_.size());
    out.calls_end = static_cast<int32_t>(packed.calls_.size());
    packed.states_.push_back(out);
  }
  packed.states_.shrink_to_fit();
  packed.bytes_.shrink_to_fit();
  packed.calls_.shrink_to_fit();
  return packed;
}

absl::StatusOr<Automaton> AutomatonBuilder::Build() {
  CADRE_RETURN_IF_ERROR(grammar_.Check(limits_));
  // Writing one rule may add others behind it.
  for (size_t rule = 0; rule < grammar_.rules.size(); ++rule) {
    CADRE_RETURN_IF_ERROR(AddRule(static_cast<RuleId>(rule)));
  }
  CADRE_ASSIGN_OR_RETURN(const std::vector<bool> productive, Productive());
  if (!productive[starts_[grammar_.root]]) return InvalidArgument("no text matches the grammar");
  return Pack(productive);
}

size_t Automaton::MemoryBytes() const {
  return states_.capacity() * sizeof(State) + bytes_.capacity() * sizeof(ByteEdge) +
         calls_.capacity() * sizeof(CallEdge);
}

absl::StatusOr<Automaton> CompileAutomaton(Grammar grammar, const GrammarLimits& limits) {
  if (grammar.rules.empty()) return InvalidArgument("the grammar has no rules");
  return AutomatonBuilder(std::move(grammar), limits).Build();
}

}  // namespace cadre
