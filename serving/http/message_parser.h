// A chat message as clients want it: thoughts, words and tool calls told apart in the text that the
// model wrote. What is handed out, put together, does not depend on how the text was cut, so a
// stream says what the whole answer says. One thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "serving/http/reasoning.h"
#include "serving/http/tool_format.h"

namespace cadre {

struct MessageFormat {
  bool reasoning = false;             // the model may think first
  bool begins_in_reasoning = false;   // the prompt has the opening tag
  const ToolFormat* tools = nullptr;  // null: no calls
  bool parallel_calls = true;         // else the first call is the only one

  bool plain() const { return !reasoning && tools == nullptr; }
};

class MessageParser {
 public:
  struct Output {
    std::string reasoning, content;
    std::vector<ToolCall> calls;
  };

  explicit MessageParser(const MessageFormat& format);

  // `last`: no more text comes.
  Output Push(std::string_view text, bool last);
  // Calls handed out so far.
  size_t calls() const { return calls_; }

 private:
  std::optional<ReasoningSplitter> reasoning_;
  std::unique_ptr<ToolParser> tools_;
  const bool parallel_calls_;
  size_t calls_ = 0;
};

// A call's id: the same for the same place in the same answer, 9 letters and digits, which is what
// the strictest templates take back.
std::string ToolCallId(std::string_view answer_id, size_t choice, size_t index);

}  // namespace cadre
