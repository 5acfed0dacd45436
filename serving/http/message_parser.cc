#include "serving/http/message_parser.h"

#include <fmt/core.h>
#include <xxhash.h>

namespace cadre {

MessageParser::MessageParser(const MessageFormat& format) : parallel_calls_(format.parallel_calls) {
  if (format.reasoning) reasoning_.emplace(format.begins_in_reasoning);
  if (format.tools != nullptr) tools_ = format.tools->make_parser();
}

MessageParser::Output MessageParser::Push(std::string_view text, bool last) {
  ReasoningSplitter::Output split;
  if (reasoning_) {
    reasoning_->Push(text, &split);
    if (last) reasoning_->Finish(&split);
  } else {
    split.content = text;
  }
  Output out{.reasoning = std::move(split.reasoning)};
  if (tools_ == nullptr) {
    out.content = std::move(split.content);
    return out;
  }
  ToolOutput said;
  tools_->Push(split.content, &said);
  if (last) tools_->Finish(&said);
  out.content = std::move(said.content);
  for (ToolCall& call : said.calls) {
    if (calls_ > 0 && !parallel_calls_) break;
    ++calls_;
    out.calls.push_back(std::move(call));
  }
  return out;
}

std::string ToolCallId(std::string_view answer_id, size_t choice, size_t index) {
  static constexpr std::string_view kLetters =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  const std::string place = fmt::format("{}/{}/{}", answer_id, choice, index);
  uint64_t hash = XXH3_64bits(place.data(), place.size());
  std::string id;
  for (int i = 0; i < 9; ++i) {
    id += kLetters[hash % kLetters.size()];
    hash /= kLetters.size();
  }
  return id;
}

}  // namespace cadre
