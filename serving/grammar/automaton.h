// Automaton: a grammar as states over bytes. Each rule is a deterministic automaton whose edges are
// byte ranges and calls of other rules; which calls are open is the matcher's to remember
// (serving/grammar/matcher.h), so recursion costs nothing here.
//
// Every state kept can reach its rule's end: where a walk is possible at all, a whole text is.
// Immutable after CompileAutomaton; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/status.h"
#include "serving/grammar/grammar.h"

namespace cadre {

class Automaton {
 public:
  struct ByteEdge {
    uint8_t first, last;
    int32_t target;
  };
  struct CallEdge {
    int32_t start;   // the called rule's first state
    int32_t target;  // where its end leads
  };
  struct State {
    int32_t bytes_begin = 0, bytes_end = 0;
    int32_t calls_begin = 0, calls_end = 0;
    bool final = false;
    // A call that leads here returns to its caller's caller at once.
    bool only_final() const {
      return final && bytes_begin == bytes_end && calls_begin == calls_end;
    }
    // Stepping here needs no thought about calls and ends.
    bool plain() const { return !final && calls_begin == calls_end; }
  };

  int32_t start() const { return start_; }
  int32_t states() const { return static_cast<int32_t>(states_.size()); }
  const State& state(int32_t id) const { return states_[static_cast<size_t>(id)]; }
  // Sorted, apart from each other.
  std::span<const ByteEdge> bytes(const State& s) const {
    return {bytes_.data() + s.bytes_begin, static_cast<size_t>(s.bytes_end - s.bytes_begin)};
  }
  std::span<const CallEdge> calls(const State& s) const {
    return {calls_.data() + s.calls_begin, static_cast<size_t>(s.calls_end - s.calls_begin)};
  }
  // -1: none.
  int32_t Target(const State& s, uint8_t byte) const {
    std::span<const ByteEdge> edges = bytes(s);
    // Few are found faster one by one, and most states have few.
    while (edges.size() > 16) {
      const size_t half = edges.size() / 2;
      edges = byte <= edges[half - 1].last ? edges.first(half) : edges.subspan(half);
    }
    for (const ByteEdge& edge : edges) {
      if (byte <= edge.last) return byte >= edge.first ? edge.target : -1;
    }
    return -1;
  }
  size_t MemoryBytes() const;

 private:
  friend class AutomatonBuilder;
  int32_t start_ = 0;
  std::vector<State> states_;
  std::vector<ByteEdge> bytes_;
  std::vector<CallEdge> calls_;
};

// kInvalidArgument: a bound is passed, or no text matches the grammar at all.
absl::StatusOr<Automaton> CompileAutomaton(Grammar grammar, const GrammarLimits& limits);

}  // namespace cadre
