// Splits a message's text into what the model thinks, between <think> and </think>, and what it
// says. White space next to the tags belongs to them. What is handed out, put together, does not
// depend on how the text was cut. One thread at a time.
#pragma once

#include <string>
#include <string_view>

namespace cadre {

inline constexpr std::string_view kThinkOpen = "<think>", kThinkClose = "</think>";

class ReasoningSplitter {
 public:
  struct Output {
    std::string reasoning, content;
  };

  // `inside`: the prompt ends with the opening tag.
  explicit ReasoningSplitter(bool inside)
      : state_(inside ? State::kOpened : State::kStart), thought_(inside) {}

  void Push(std::string_view text, Output* out);
  void Finish(Output* out);
  // Whether there were thoughts so far, and whether no more may come.
  bool thought() const { return thought_; }
  bool over() const { return state_ == State::kClosed || state_ == State::kSaying; }

 private:
  enum class State { kStart, kOpened, kThinking, kClosed, kSaying };

  // One part of what is pending; false where more text must come.
  bool Advance(bool last, Output* out);
  bool Think(bool last, Output* out);
  // Drops white space at the beginning; false where nothing is left.
  bool SkipSpace();

  State state_;
  bool thought_;
  std::string pending_;
};

// Where a prompt leaves the model: free to think, inside of its thoughts, or past them.
// continued: what the prompt ends with of the message that is to go on; empty: a new one begins.
enum class Thinking { kNone, kOpen, kDone };
Thinking ThinkingAfter(std::string_view prompt, std::string_view continued = {});

}  // namespace cadre
