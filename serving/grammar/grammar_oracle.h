// For tests: what a grammar means, computed the slow and plain way, straight from its nodes.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "serving/grammar/grammar.h"

namespace cadre {

// Tables over (node, place), filled to the least fixed point. Quantities are exact for any grammar,
// left recursion and empty loops included; cost is cubic and more.
class GrammarOracle {
 public:
  GrammarOracle(const Grammar& grammar, std::string text) : g_(grammar), text_(std::move(text)) {
    productive_.assign(g_.nodes.size(), false);
    Fix([&](size_t id) {
      const bool before = productive_[id];
      productive_[id] = before || Productive(g_.nodes[id]);
      return productive_[id] != before;
    });
    ends_.assign(g_.nodes.size(), std::vector<std::set<size_t>>(text_.size() + 1));
    alive_.assign(g_.nodes.size(), std::vector<bool>(text_.size() + 1, false));
    Fix([&](size_t id) {
      bool changed = false;
      for (size_t at = 0; at <= text_.size(); ++at) {
        State state{ends_[id][at], alive_[id][at]};
        Visit(g_.nodes[id], at, &state);
        changed = changed || state.ends != ends_[id][at] || state.alive != alive_[id][at];
        ends_[id][at] = state.ends;
        alive_[id][at] = state.alive;
      }
      return changed;
    });
  }

  // The text is one of the grammar's.
  bool Matches() const { return ends_[Root()][0].contains(text_.size()); }
  // The text begins one of the grammar's.
  bool Viable() const { return Matches() || alive_[Root()][0]; }

 private:
  struct State {
    std::set<size_t> ends;  // where the node may end that begins at this place
    bool alive;             // a parse of it runs out of text on the way
  };

  NodeId Root() const { return g_.rules[g_.root].body; }

  template <typename Update>
  void Fix(Update update) {
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t id = 0; id < g_.nodes.size(); ++id) changed = update(id) || changed;
    }
  }

  bool Productive(const GrammarNode& node) const {
    auto child = [&](NodeId id) { return bool{productive_[id]}; };
    switch (node.kind) {
      case NodeKind::kBytes:
      case NodeKind::kUntil:
        return true;
      case NodeKind::kClass:
        return !Utf8Sequences(node.ranges).empty();
      case NodeKind::kSequence:
        return std::ranges::all_of(node.children, child);
      case NodeKind::kChoice:
        return std::ranges::any_of(node.children, child);
      case NodeKind::kRepeat:
        return node.min == 0 || child(node.children[0]);
      case NodeKind::kRule:
        return child(g_.rules[node.rule].body);
      case NodeKind::kMembers: {
        int needed = 0;
        for (size_t i = 0; i < node.optional.size(); ++i) {
          if (node.optional[i]) continue;
          if (!child(node.children[i + 1])) return false;
          ++needed;
        }
        return needed < 2 || child(node.children[0]);
      }
    }
    return false;
  }

  // Whether the oracle may go on with text of `bytes` at a place.
  void Literal(const std::string& bytes, size_t at, State* state) const {
    const size_t there = std::min(bytes.size(), text_.size() - at);
    if (text_.compare(at, there, bytes, 0, there) != 0) return;
    if (there == bytes.size()) {
      state->ends.insert(at + there);
    } else {
      state->alive = true;
    }
  }

  // One child from each of `from` on; the places it ends.
  std::set<size_t> Child(NodeId id, const std::set<size_t>& from, bool rest, State* state) const {
    std::set<size_t> ends;
    for (size_t at : from) {
      ends.insert(ends_[id][at].begin(), ends_[id][at].end());
      state->alive = state->alive || (rest && alive_[id][at]);
    }
    return ends;
  }

  void Visit(const GrammarNode& node, size_t at, State* state) const {
    switch (node.kind) {
      case NodeKind::kBytes:
        return Literal(node.bytes, at, state);
      case NodeKind::kUntil: {
        const size_t found = text_.find(node.bytes, at);
        if (found == std::string::npos) {
          state->alive = true;
        } else {
          state->ends.insert(found + node.bytes.size());
        }
        return;
      }
      case NodeKind::kClass:
        for (const CodepointRange& range : node.ranges) {
          for (uint32_t c = range.first; c <= range.last; ++c) {
            if (c < 0xD800 || c > 0xDFFF) Literal(Utf8(c), at, state);
          }
        }
        return;
      case NodeKind::kRule:
        state->ends = ends_[g_.rules[node.rule].body][at];
        state->alive = alive_[g_.rules[node.rule].body][at];
        return;
      case NodeKind::kChoice:
        for (NodeId child : node.children) {
          for (size_t end : Child(child, {at}, true, state)) state->ends.insert(end);
        }
        return;
      case NodeKind::kSequence:
        return Sequence(node.children, at, state);
      case NodeKind::kRepeat:
        return Repeat(node, at, state);
      case NodeKind::kMembers:
        return Members(node, at, 0, false, state);
    }
  }

  void Sequence(const std::vector<NodeId>& children, size_t at, State* state) const {
    std::set<size_t> places{at};
    for (size_t i = 0; i < children.size(); ++i) {
      bool rest = true;
      for (size_t j = i; j < children.size(); ++j) rest = rest && productive_[children[j]];
      if (!rest) return;
      places = Child(children[i], places, true, state);
      // Out of text before the next child begins.
      if (i + 1 < children.size() && places.contains(text_.size())) state->alive = true;
    }
    state->ends.insert(places.begin(), places.end());
  }

  void Repeat(const GrammarNode& node, size_t at, State* state) const {
    std::set<size_t> places{at}, seen;
    const int64_t most = node.max < 0 ? node.min + int64_t(text_.size()) + 2 : node.max;
    for (int64_t i = 0; i <= most && !places.empty(); ++i) {
      if (i >= node.min) {
        state->ends.insert(places.begin(), places.end());
      } else if (places.contains(text_.size()) && productive_[node.children[0]]) {
        state->alive = true;
      }
      if (i < most) places = Child(node.children[0], places, productive_[node.children[0]], state);
    }
  }

  // Every subset of the members, spelled out.
  void Members(const GrammarNode& node, size_t at, size_t index, bool some, State* state,
               std::vector<NodeId> chosen = {}) const {
    if (index == node.optional.size()) return Sequence(chosen, at, state);
    if (node.optional[index]) Members(node, at, index + 1, some, state, chosen);
    const bool last = node.repeats && index + 1 == node.optional.size();
    for (size_t times = 1; times <= (last ? text_.size() + 1 : 1); ++times) {
      if (some) chosen.push_back(node.children[0]);
      chosen.push_back(node.children[index + 1]);
      some = true;
      Members(node, at, index + 1, some, state, chosen);
    }
  }

  const Grammar& g_;
  const std::string text_;
  std::vector<bool> productive_;
  std::vector<std::vector<std::set<size_t>>> ends_;
  std::vector<std::vector<bool>> alive_;
};

}  // namespace cadre
