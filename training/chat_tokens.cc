#include "training/chat_tokens.h"

#include <algorithm>
#include <span>

#include <nlohmann/json.hpp>

namespace cadre {
namespace {

// The spans up to byte `end` of the text.
std::vector<TextSpan> Prefix(const std::vector<TextSpan>& spans, size_t end) {
  std::vector<TextSpan> prefix;
  size_t begin = 0;
  for (const TextSpan& span : spans) {
    if (begin >= end) break;
    prefix.push_back({span.text.substr(0, end - begin), span.from_template});
    begin += span.text.size();
  }
  return prefix;
}

// Tokens of `ids` before byte `end`. Encoding the text up to there gives the same tokens, except
// for those at the cut that a merge across it would have joined; so it needs no map from tokens to
// bytes, which normalizers blur.
size_t TokensBefore(const Tokenizer& tokenizer, const std::vector<TextSpan>& spans, size_t end,
                    std::span<const int32_t> ids) {
  std::vector<int32_t> prefix = tokenizer.EncodeSpans(Prefix(spans, end));
  auto [a, b] = std::mismatch(prefix.begin(), prefix.end(), ids.begin(), ids.end());
  return static_cast<size_t>(b - ids.begin());
}

}  // namespace

absl::StatusOr<ChatTokens> TokenizeChat(const ChatTemplate& chat, const Tokenizer& tokenizer,
                                        const ChatInput& input) {
  CADRE_ASSIGN_OR_RETURN(TrainingChat rendered, chat.RenderForTraining(input));
  std::vector<TextSpan> spans = rendered.chat.Spans();
  ChatTokens tokens{.ids = tokenizer.EncodeSpans(spans)};
  tokens.mask.resize(tokens.ids.size());
  for (const ByteRange& turn : rendered.assistant) {
    size_t begin = TokensBefore(tokenizer, spans, turn.begin, tokens.ids);
    size_t end = TokensBefore(tokenizer, spans, turn.end, tokens.ids);
    for (size_t t = begin; t < end; ++t) tokens.mask[t] = 1;
  }
  return tokens;
}

absl::StatusOr<ChatTokens> TokenizeChatLine(const ChatTemplate& chat, const Tokenizer& tokenizer,
                                            const std::string& line) {
  nlohmann::ordered_json json =
      nlohmann::ordered_json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("messages") || !json["messages"].is_array()) {
    return InvalidArgument("a JSON object with an array \"messages\" is needed");
  }
  ChatInput input{.messages = json["messages"].dump()};
  if (json.contains("tools") && !json["tools"].is_null()) input.tools = json["tools"].dump();
  return TokenizeChat(chat, tokenizer, input);
}

}  // namespace cadre
