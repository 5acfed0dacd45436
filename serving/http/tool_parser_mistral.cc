// Mistral: [TOOL_CALLS] and a JSON list of {"name": ..., "arguments": {...}}, text before it.
#include <algorithm>

#include "serving/http/json_fields.h"
#include "serving/http/tool_format.h"

namespace cadre {
namespace {

constexpr std::string_view kMark = "[TOOL_CALLS]";
constexpr std::string_view kSpace = " \t\r\n";

class MistralParser : public ToolParser {
 public:
  void Push(std::string_view text, ToolOutput* out) override {
    pending_ += text;
    while (Advance(out)) {
    }
  }
  void Finish(ToolOutput* out) override { Release(pending_.size(), out); }

 private:
  bool Advance(ToolOutput* out) {
    const size_t mark = pending_.find(kMark);
    if (mark != 0) {
      Release(mark == std::string::npos ? pending_.size() - BeginsAtEnd(pending_, kMark) : mark,
              out);
      return mark != std::string::npos;
    }
    const size_t begin = pending_.find_first_not_of(kSpace, kMark.size());
    if (begin == std::string::npos) return false;
    if (pending_[begin] != '[') return GiveUp(out);
    const std::string_view body = std::string_view(pending_).substr(begin);
    const size_t size = finder_.Find(body);
    if (size == std::string_view::npos) return false;
    std::vector<ToolCall> calls;
    if (!ParseList(body.substr(0, size), &calls)) return GiveUp(out);
    for (ToolCall& call : calls) out->calls.push_back(std::move(call));
    behind_call_ = true;
    finder_ = {};
    pending_.erase(0, begin + size);
    return true;
  }

  static bool ParseList(std::string_view text, std::vector<ToolCall>* calls) {
    Json object;
    // The front's reader takes objects only, and bounds their nesting.
    if (ParseJsonObject(fmt::format("{{\"calls\":{}}}", text), &object)) return false;
    for (const Json& one : object["calls"]) {
      calls->emplace_back();
      if (!ParseToolCall(one.dump(), &calls->back())) return false;
    }
    return !calls->empty();
  }

  bool GiveUp(ToolOutput* out) {
    finder_ = {};
    Release(kMark.size(), out);
    return true;
  }

  void Release(size_t size, ToolOutput* out) {
    std::string_view text = std::string_view(pending_).substr(0, size);
    // White space behind calls belongs to them.
    if (behind_call_) text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
    if (!text.empty()) behind_call_ = false;
    out->content += text;
    pending_.erase(0, size);
  }

  std::string pending_;
  JsonEndFinder finder_;      // of the call at hand
  bool behind_call_ = false;  // nothing but white space came since
};

}  // namespace

std::unique_ptr<ToolParser> MakeMistralParser() { return std::make_unique<MistralParser>(); }

}  // namespace cadre
