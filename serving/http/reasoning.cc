#include "serving/http/reasoning.h"

#include "serving/http/tool_format.h"

namespace cadre {
namespace {

constexpr std::string_view kSpace = " \t\r\n";

}  // namespace

Thinking ThinkingAfter(std::string_view prompt, std::string_view continued) {
  const size_t open = continued.rfind(kThinkOpen), close = continued.rfind(kThinkClose);
  if (close != continued.npos && (open == continued.npos || open < close)) return Thinking::kDone;
  if (open != continued.npos) return Thinking::kOpen;
  const size_t end = prompt.find_last_not_of(kSpace);
  if (end == std::string_view::npos) return Thinking::kNone;
  prompt = prompt.substr(0, end + 1);
  if (prompt.ends_with(kThinkOpen)) return Thinking::kOpen;
  return prompt.ends_with(kThinkClose) ? Thinking::kDone : Thinking::kNone;
}

void ReasoningSplitter::Push(std::string_view text, Output* out) {
  pending_ += text;
  while (Advance(false, out)) {
  }
}

void ReasoningSplitter::Finish(Output* out) {
  while (Advance(true, out)) {
  }
}

bool ReasoningSplitter::SkipSpace() {
  pending_.erase(0, pending_.find_first_not_of(kSpace));
  return !pending_.empty();
}

bool ReasoningSplitter::Advance(bool last, Output* out) {
  switch (state_) {
    case State::kStart: {
      const size_t begin = pending_.find_first_not_of(kSpace);
      const std::string_view text =
          begin == std::string::npos ? "" : std::string_view(pending_).substr(begin);
      if (text.size() < kThinkOpen.size() && kThinkOpen.starts_with(text) && !last) return false;
      const bool thinks = text.starts_with(kThinkOpen);
      if (thinks) pending_.erase(0, begin + kThinkOpen.size());
      thought_ = thinks;
      state_ = thinks ? State::kOpened : State::kSaying;
      return true;
    }
    case State::kOpened:
      // A tag that the prompt has already may come once more.
      if (!SkipSpace()) return false;
      if (pending_.size() < kThinkOpen.size() && kThinkOpen.starts_with(pending_) && !last) {
        return false;
      }
      if (pending_.starts_with(kThinkOpen)) {
        pending_.erase(0, kThinkOpen.size());
        return true;
      }
      state_ = State::kThinking;
      return true;
    case State::kThinking:
      return Think(last, out);
    case State::kClosed:
      if (!SkipSpace()) return false;
      state_ = State::kSaying;
      return true;
    case State::kSaying:
      out->content += pending_;
      pending_.clear();
      return false;
  }
  return false;
}

bool ReasoningSplitter::Think(bool last, Output* out) {
  const size_t close = pending_.find(kThinkClose);
  const bool closed = close != std::string::npos;
  const size_t certain =
      closed ? close : pending_.size() - (last ? 0 : BeginsAtEnd(pending_, kThinkClose));
  // White space may turn out to stand before the tag.
  const size_t text = std::string_view(pending_).substr(0, certain).find_last_not_of(kSpace);
  const size_t size = last && !closed ? certain : text == std::string::npos ? 0 : text + 1;
  out->reasoning += pending_.substr(0, size);
  pending_.erase(0, closed ? close + kThinkClose.size() : size);
  if (closed) state_ = State::kClosed;
  return closed;
}

}  // namespace cadre
