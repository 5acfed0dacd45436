// Matcher: how far a text has come in a grammar, and whether it may go on with given bytes.
//
// The walk keeps every parse that is still possible, as states with the calls that are open above
// them. Calls made of one rule at one place of the text share one frame, as in Tomita's
// graph-structured stack and in GLL parsing (Scott and Johnstone, LDTA 2009), so ambiguity costs a
// polynomial and left recursion ends. Frames below the current place never change; stepping back
// therefore is cutting arrays short.
//
// One thread at a time; copies are independent. The automaton outlives the matcher.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "serving/grammar/automaton.h"

namespace cadre {

struct MatcherLimits {
  size_t max_parses = 512;              // at one place of the text
  size_t max_frames = size_t{1} << 16;  // open calls
  int64_t max_work = int64_t{1} << 23;  // of one mask, in steps
};

class GrammarWalk {
 public:
  // A parse: a state, and the frame that its rule's end returns to.
  struct Parse {
    int32_t state;
    int32_t frame;
    bool operator==(const Parse&) const = default;
  };
  // The frame that nothing is known of: the grammar's own end, or, where the walk began in the
  // middle, what only the caller knows.
  static constexpr int32_t kOutside = 0;

  explicit GrammarWalk(const Automaton& automaton, const MatcherLimits& limits = {});

  // Begins anew, in one state of the outermost frame, taking byte edges alone from it.
  void Begin(int32_t state);
  // Begins behind the end of a call: with all that `frame` of `other` returns to. The walks may
  // not be the same; frames are taken over.
  void BeginBehind(const GrammarWalk& other, int32_t frame);
  // The grammar's beginning.
  void BeginText();

  // One byte on. False: no parse is left, and the walk is where it was.
  bool Step(uint8_t byte);
  // Undoes the last `count` steps. Not past Begin or Settle.
  void Back(size_t count);
  // Makes the steps so far final and lets go of frames that no parse needs.
  void Settle();

  size_t depth() const { return levels_.size() - 1; }
  // The parses that a byte may continue.
  std::span<const Parse> parses() const {
    return {parses_.data() + levels_.back().parses, parses_.size() - levels_.back().parses};
  }
  // The outermost frame's end is reached: a whole text where the walk began with BeginText.
  bool at_end() const { return levels_.back().at_end; }

  // A bound was passed; what the walk says from then on means nothing.
  bool exhausted() const { return exhausted_; }
  int64_t work() const { return work_; }
  void ResetWork() { work_ = 0; }
  size_t frames() const { return frames_.size(); }

 private:
  struct Return {
    int32_t state, frame;
    int32_t next;  // of the same frame, or -1
  };
  struct Frame {
    int32_t start;  // of the called rule
    int32_t returns = -1;
    bool ended = false;  // at the place where it was opened: the rule derives the empty text
  };
  struct Level {
    size_t parses = 0, frames = 0, returns = 0;  // where this level's begin
    bool at_end = false;
  };

  void NewLevel();
  void DropLevel();
  // Follows calls and ends from candidates_ until nothing is new; keeps parses with byte edges.
  void Close();
  void Consider(int32_t state, int32_t frame);
  void Call(const Automaton::CallEdge& call, int32_t frame);
  void End(int32_t frame);
  int32_t OpenFrame(int32_t start);
  bool open(int32_t frame) const {
    return frame != kOutside && static_cast<size_t>(frame) >= levels_.back().frames;
  }

  const Automaton* automaton_;
  MatcherLimits limits_;
  std::vector<Parse> parses_;
  std::vector<Frame> frames_;
  std::vector<Return> returns_;
  std::vector<Level> levels_;
  std::vector<Parse> candidates_;  // of the level at hand, each once
  int64_t work_ = 0;
  bool exhausted_ = false;
};

}  // namespace cadre
