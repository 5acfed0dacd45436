#include "serving/grammar/matcher.h"

#include <algorithm>

namespace cadre {

GrammarWalk::GrammarWalk(const Automaton& automaton, const MatcherLimits& limits)
    : automaton_(&automaton), limits_(limits) {
  BeginText();
}

void GrammarWalk::Begin(int32_t state) {
  parses_.assign(1, {state, kOutside});
  frames_.assign(1, {.start = -1});
  returns_.clear();
  levels_.assign(1, {});
}

void GrammarWalk::BeginText() {
  Begin(automaton_->start());
  parses_.clear();
  levels_.back().frames = 1;
  candidates_.assign(1, {automaton_->start(), kOutside});
  Close();
}

void GrammarWalk::BeginBehind(const GrammarWalk& other, int32_t frame) {
  parses_.clear();
  frames_ = other.frames_;
  returns_ = other.returns_;
  levels_.assign(1, {.frames = frames_.size(), .returns = returns_.size()});
  candidates_.clear();
  End(frame);
  Close();
}

void GrammarWalk::NewLevel() {
  levels_.push_back(
      {.parses = parses_.size(), .frames = frames_.size(), .returns = returns_.size()});
}

void GrammarWalk::DropLevel() {
  const Level& level = levels_.back();
  parses_.resize(level.parses);
  frames_.resize(level.frames);
  returns_.resize(level.returns);
  levels_.pop_back();
}

void GrammarWalk::Back(size_t count) {
  for (size_t i = 0; i < count; ++i) DropLevel();
}

bool GrammarWalk::Step(uint8_t byte) {
  const size_t begin = levels_.back().parses, end = parses_.size();
  NewLevel();
  candidates_.clear();
  work_ += static_cast<int64_t>(end - begin);
  bool plain = true;
  for (size_t i = begin; i < end; ++i) {
    const Parse parse = parses_[i];
    const int32_t target = automaton_->Target(automaton_->state(parse.state), byte);
    if (target < 0) continue;
    plain = plain && automaton_->state(target).plain();
    Consider(target, parse.frame);
  }
  if (candidates_.empty()) {
    DropLevel();
    return false;
  }
  if (plain) {
    parses_.insert(parses_.end(), candidates_.begin(), candidates_.end());
  } else {
    Close();
  }
  return true;
}

void GrammarWalk::Consider(int32_t state, int32_t frame) {
  const Parse parse{state, frame};
  work_ += static_cast<int64_t>(candidates_.size()) + 1;
  if (std::ranges::find(candidates_, parse) != candidates_.end()) return;
  if (candidates_.size() >= limits_.max_parses || frames_.size() >= limits_.max_frames) {
    exhausted_ = true;
    return;
  }
  candidates_.push_back(parse);
}

void GrammarWalk::Close() {
  for (size_t i = 0; i < candidates_.size(); ++i) {
    const Parse parse = candidates_[i];
    const Automaton::State& state = automaton_->state(parse.state);
    if (state.bytes_begin != state.bytes_end) parses_.push_back(parse);
    for (const Automaton::CallEdge& call : automaton_->calls(state)) Call(call, parse.frame);
    if (state.final) End(parse.frame);
  }
}

int32_t GrammarWalk::OpenFrame(int32_t start) {
  for (size_t i = levels_.back().frames; i < frames_.size(); ++i) {
    if (frames_[i].start == start) return static_cast<int32_t>(i);
  }
  work_ += static_cast<int64_t>(frames_.size() - levels_.back().frames);
  frames_.push_back({.start = start});
  return static_cast<int32_t>(frames_.size()) - 1;
}

void GrammarWalk::Call(const Automaton::CallEdge& call, int32_t frame) {
  // Nothing is left to do behind the call: it returns to where this rule returns.
  if (automaton_->state(call.target).only_final()) return Consider(call.start, frame);
  const int32_t callee = OpenFrame(call.start);
  for (int32_t r = frames_[callee].returns; r >= 0; r = returns_[r].next) {
    ++work_;
    if (returns_[r].state == call.target && returns_[r].frame == frame) return;
  }
  returns_.push_back({call.target, frame, frames_[callee].returns});
  frames_[callee].returns = static_cast<int32_t>(returns_.size()) - 1;
  if (frames_[callee].ended) Consider(call.target, frame);
  Consider(call.start, callee);
}

void GrammarWalk::End(int32_t frame) {
  if (frame == kOutside) {
    levels_.back().at_end = true;
    return;
  }
  if (open(frame)) frames_[frame].ended = true;
  for (int32_t r = frames_[frame].returns; r >= 0; r = returns_[r].next) {
    Consider(returns_[r].state, returns_[r].frame);
  }
}

void GrammarWalk::Settle() {
  const Level top = levels_.back();
  parses_.erase(parses_.begin(), parses_.begin() + static_cast<int64_t>(top.parses));
  levels_.assign(1, {.frames = frames_.size(), .returns = returns_.size(), .at_end = top.at_end});
  // Frames are numbered in the order of their making; those of one place may name each other.
  std::vector<int32_t> moved(frames_.size(), -1), reached;
  auto reach = [&](int32_t frame) {
    if (moved[frame] >= 0) return;
    moved[frame] = 1;
    reached.push_back(frame);
  };
  reach(kOutside);
  for (const Parse& parse : parses_) reach(parse.frame);
  for (size_t i = 0; i < reached.size(); ++i) {
    for (int32_t r = frames_[reached[i]].returns; r >= 0; r = returns_[r].next) {
      reach(returns_[r].frame);
    }
  }
  std::ranges::sort(reached);
  for (size_t i = 0; i < reached.size(); ++i) moved[reached[i]] = static_cast<int32_t>(i);
  std::vector<Frame> frames;
  std::vector<Return> returns;
  for (int32_t old : reached) {
    frames.push_back({.start = frames_[old].start, .ended = frames_[old].ended});
    for (int32_t r = frames_[old].returns; r >= 0; r = returns_[r].next) {
      returns.push_back({returns_[r].state, moved[returns_[r].frame], frames.back().returns});
      frames.back().returns = static_cast<int32_t>(returns.size()) - 1;
    }
  }
  frames_ = std::move(frames);
  returns_ = std::move(returns);
  for (Parse& parse : parses_) parse.frame = moved[parse.frame];
  levels_.back().frames = frames_.size();
  levels_.back().returns = returns_.size();
}

}  // namespace cadre
