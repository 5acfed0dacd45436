#include "bench/serve_load_answer.h"

#include <simdjson.h>

#include <algorithm>
#include <utility>

namespace cadre::bench {

void StreamCheck::Fail(std::string kind) {
  if (error_.empty()) error_ = std::move(kind);
}

void StreamCheck::Feed(std::string_view bytes, double now, Outcome* outcome) {
  constexpr size_t kMaxLine = size_t{1} << 20;
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    line_ += bytes.substr(0, end);
    if (line_.size() > kMaxLine) {
      line_.clear();
      return Fail("line too long");
    }
    if (end == std::string_view::npos) return;
    bytes.remove_prefix(end + 1);
    if (line_.ends_with('\r')) line_.pop_back();
    if (line_.starts_with("data:")) {
      std::string_view data = std::string_view(line_).substr(5);
      if (data.starts_with(' ')) data.remove_prefix(1);
      Event(data, now, outcome);
    }
    line_.clear();
  }
}

void StreamCheck::Event(std::string_view data, double now, Outcome* outcome) {
  if (done_) return Fail("event after [DONE]");
  if (data == "[DONE]") {
    done_ = true;
    return;
  }
  simdjson::dom::element event, error;
  simdjson::dom::array choices;
  if (parser_->parse(data.data(), data.size()).get(event)) return Fail("event is no JSON");
  if (!event["error"].get(error)) return Fail("error event");
  if (event["choices"].get(choices)) return Fail("event without choices");
  for (simdjson::dom::element choice : choices) {
    std::string_view text, finish;
    simdjson::dom::array ids;
    const size_t named = choice["token_ids"].get(ids) ? 0 : ids.size();
    if (choice["text"].get(text)) return Fail("choice without text");
    if (outcome->first == 0) {
      outcome->first = now;
    } else if (!text.empty() || named > 0) {
      const size_t tokens = std::max<size_t>(named, 1);
      const double each = (now - outcome->last) / static_cast<double>(tokens);
      outcome->gaps.insert(outcome->gaps.end(), tokens, static_cast<float>(each));
    }
    outcome->last = now;
    if (!choice["finish_reason"].get(finish)) {
      ++finish_reasons_;
      finish_ = finish;
    }
  }
  simdjson::dom::element usage;
  if (event["usage"].get(usage) || usage.is_null()) return;
  usage_ = !usage["prompt_tokens"].get(outcome->prompt_tokens) &&
           !usage["completion_tokens"].get(outcome->output_tokens);
  if (usage["prompt_tokens_details"]["cached_tokens"].get(outcome->cached_tokens)) {
    outcome->cached_tokens = 0;
  }
}

void StreamCheck::End(const Expected& expected, Outcome* outcome) {
  if (!done_) Fail("stream broke off");
  if (finish_reasons_ != 1) Fail("not one finish_reason");
  if (finish_ != "length") Fail("finish_reason is not length");
  if (!usage_) Fail("no usage");
  if (outcome->prompt_tokens != expected.prompt_tokens) Fail("wrong prompt_tokens");
  if (outcome->output_tokens != expected.output_tokens) Fail("wrong completion_tokens");
  if (outcome->error.empty()) outcome->error = error_;
}

}  // namespace cadre::bench
