// Hermes and Qwen: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them,
// text before and between.
#include "serving/http/tool_format.h"

namespace cadre {
namespace {

constexpr std::string_view kOpen = "<tool_call>", kClose = "</tool_call>";
constexpr std::string_view kSpace = " \t\r\n";

class HermesParser : public ToolParser {
 public:
  void Push(std::string_view text, ToolOutput* out) override {
    pending_ += text;
    while (Advance(false, out)) {
    }
  }
  void Finish(ToolOutput* out) override {
    while (Advance(true, out)) {
    }
    out->content += pending_;
    pending_.clear();
  }

 private:
  // One part of what is pending; false where more text must come.
  bool Advance(bool last, ToolOutput* out) {
    const size_t open = pending_.find(kOpen);
    if (open == std::string::npos) {
      Release(pending_.size() - (last ? 0 : Held()), out);
      return false;
    }
    if (open > 0) {
      // White space around calls belongs to them.
      const size_t text = pending_.find_last_not_of(kSpace, open - 1);
      if (text != std::string::npos && text < open) Release(text + 1, out);
      space_ = pending_.substr(0, pending_.find(kOpen));
      pending_.erase(0, space_.size());
    }
    return Call(last, out);
  }

  bool Call(bool last, ToolOutput* out) {
    const size_t begin = pending_.find_first_not_of(kSpace, kOpen.size());
    if (begin == std::string::npos) return last ? GiveUp(out) : false;
    if (pending_[begin] != '{') return GiveUp(out);
    const std::string_view body = std::string_view(pending_).substr(begin);
    if (size_ == std::string_view::npos) size_ = finder_.Find(body);
    const size_t size = size_;
    if (size == std::string_view::npos) return last ? GiveUp(out) : false;
    const size_t behind = pending_.find_first_not_of(kSpace, begin + size);
    const bool cut = behind == std::string::npos ||
                     (pending_.size() - behind < kClose.size() &&
                      kClose.starts_with(std::string_view(pending_).substr(behind)));
    if (cut && !last) return false;
    // A message that ends amid the closing tag has said what it had to.
    const bool closed = cut || std::string_view(pending_).substr(behind).starts_with(kClose);
    ToolCall call;
    if (!closed || !ParseToolCall(body.substr(0, size), &call)) return GiveUp(out);
    out->calls.push_back(std::move(call));
    called_ = true;
    Forget();
    pending_.erase(0, cut ? pending_.size() : behind + kClose.size());
    return !pending_.empty();
  }

  // The tag was none: it is text, and the search goes on behind it.
  bool GiveUp(ToolOutput* out) {
    pending_.insert(0, space_);
    Release(space_.size() + kOpen.size(), out);
    Forget();
    return true;
  }

  void Forget() {
    space_.clear();
    finder_ = {};
    size_ = std::string::npos;
  }

  void Release(size_t size, ToolOutput* out) {
    std::string text = pending_.substr(0, size);
    pending_.erase(0, size);
    if (called_) {
      const size_t begin = text.find_first_not_of(kSpace);
      if (begin == std::string::npos) return;
      text.erase(0, begin);
      called_ = false;
    }
    out->content += text;
  }

  // What may turn out to stand before a tag.
  size_t Held() const {
    const size_t tag = BeginsAtEnd(pending_, kOpen);
    const std::string_view before = std::string_view(pending_).substr(0, pending_.size() - tag);
    const size_t text = before.find_last_not_of(kSpace);
    return pending_.size() - (text == std::string_view::npos ? 0 : text + 1);
  }

  std::string pending_;
  std::string space_;  // that stood before the tag at hand
  JsonEndFinder finder_;
  size_t size_ = std::string::npos;  // of the tag's JSON, once found
  bool called_ = false;              // white space behind a call is not text
};

}  // namespace

std::unique_ptr<ToolParser> MakeHermesParser() { return std::make_unique<HermesParser>(); }

}  // namespace cadre
