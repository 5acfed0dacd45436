// Llama 3: a message that is JSON, {"name": ..., "parameters": {...}}, maybe behind <|python_tag|>;
// several are separated by semicolons or white space. A message that begins otherwise is text.
#include "serving/http/tool_format.h"

namespace cadre {
namespace {

constexpr std::string_view kTag = "<|python_tag|>";
constexpr std::string_view kBetween = "; \t\r\n";

class Llama3Parser : public ToolParser {
 public:
  void Push(std::string_view text, ToolOutput* out) override {
    if (is_text_) {
      out->content += text;
      return;
    }
    pending_ += text;
    while (!is_text_ && Advance(out)) {
    }
  }
  void Finish(ToolOutput* out) override {
    // Unfinished JSON is text; what only separates calls is nothing.
    if (!called_ || pending_.find_first_not_of(kBetween) != std::string::npos) {
      out->content += pending_;
    }
    pending_.clear();
  }

 private:
  bool Advance(ToolOutput* out) {
    size_t begin = pending_.find_first_not_of(kBetween);
    if (begin == std::string::npos) return false;
    const std::string_view rest = std::string_view(pending_).substr(begin);
    if (kTag.starts_with(rest)) {
      if (rest.size() < kTag.size()) return false;
      begin += kTag.size();
    } else if (rest.starts_with(kTag)) {
      begin += kTag.size();
    }
    begin = pending_.find_first_not_of(kBetween, begin);
    if (begin == std::string::npos) return false;
    if (pending_[begin] != '{') return GiveUp(out);
    const std::string_view body = std::string_view(pending_).substr(begin);
    const size_t size = finder_.Find(body);
    if (size == std::string_view::npos) return false;
    ToolCall call;
    if (!ParseToolCall(body.substr(0, size), &call)) return GiveUp(out);
    out->calls.push_back(std::move(call));
    called_ = true;
    finder_ = {};
    pending_.erase(0, begin + size);
    return true;
  }

  bool GiveUp(ToolOutput* out) {
    finder_ = {};
    out->content += pending_;
    pending_.clear();
    is_text_ = true;
    return false;
  }

  std::string pending_;
  JsonEndFinder finder_;  // of the call at hand
  bool is_text_ = false;
  bool called_ = false;
};

}  // namespace

std::unique_ptr<ToolParser> MakeLlama3Parser() { return std::make_unique<Llama3Parser>(); }

}  // namespace cadre
