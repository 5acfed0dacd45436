// A conversation as token ids and a loss mask: rendered by the model's own chat template, encoded
// by its tokenizer, with the assistant's turns (end-of-turn token included) marked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace cadre {

struct ChatTokens {
  std::vector<int32_t> ids;
  std::vector<uint8_t> mask;  // 1 where predicting the token counts in the loss
};

// Callable from any thread. `input.messages` as in ChatTemplate; what it or the template refuses is
// kInvalidArgument.
absl::StatusOr<ChatTokens> TokenizeChat(const ChatTemplate& chat, const Tokenizer& tokenizer,
                                        const ChatInput& input);

// The same of one JSONL line: an object with `messages` and optionally `tools`.
absl::StatusOr<ChatTokens> TokenizeChatLine(const ChatTemplate& chat, const Tokenizer& tokenizer,
                                            const std::string& line);

}  // namespace cadre
