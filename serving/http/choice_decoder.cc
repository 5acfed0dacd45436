#include "serving/http/choice_decoder.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace cadre {

ChoiceDecoder::ChoiceDecoder(const Tokenizer& tokenizer, Options options)
    : decoder_(tokenizer, options.skip_special_tokens, options.continues_text),
      options_(std::move(options)) {}

ChoiceDelta ChoiceDecoder::Push(TokenEvent event) {
  ChoiceDelta delta;
  if (finished_) return delta;
  delta.finish = event.finish;
  delta.error = event.error;
  delta.cached_tokens = event.cached_tokens;
  delta.prompt_logprobs = std::move(event.prompt_logprobs);
  delta.prompt_top = std::move(event.prompt_top);
  delta.embedding = std::move(event.embedding);
  delta.weight_version = event.weight_version;
  // The token that ends a sequence is counted but shows neither in the text nor in its logprobs.
  bool visible = event.token >= 0 && event.finish != FinishReason::kStop;
  if (event.token >= 0) {
    delta.tokens = 1;
    delta.token = event.token;
    ++tokens_;
  }
  if (event.token >= 0 && options_.logprobs && (visible || options_.ending_logprobs)) {
    entries_.push_back({.chosen = {event.token, event.logprob},
                        .top = std::move(event.top),
                        .has_logprob = true,
                        .text_offset = released_ + pending_.size()});
  }
  if (visible) pending_ += decoder_.Push(event.token);
  if (tokens_ <= options_.min_tokens) unsearched_ = pending_.size();
  bool last = event.finish != FinishReason::kNone;
  if (last) pending_ += decoder_.Finish();
  if (Release(last, &delta)) {
    delta.finish = FinishReason::kStop;
    delta.cancel_engine = !last;
  }
  finished_ = delta.finish != FinishReason::kNone;
  return delta;
}

bool ChoiceDecoder::Release(bool last, ChoiceDelta* delta) {
  size_t cut = std::string::npos;
  for (const std::string& stop : options_.stop) {
    const size_t found = pending_.find(stop, unsearched_);
    if (found < cut) delta->stop = stop;
    cut = std::min(cut, found);
  }
  bool stopped = cut != std::string::npos;
  size_t size = stopped ? cut : pending_.size() - (last ? 0 : HeldBack());
  delta->text = pending_.substr(0, size);
  pending_.erase(0, size);
  released_ += size;
  unsearched_ -= std::min(unsearched_, size);
  // A token goes with the text that it begins in; behind a stop nothing follows.
  auto keep = std::find_if(entries_.begin(), entries_.end(), [&](const LogprobEntry& entry) {
    return last && !stopped ? false : entry.text_offset >= released_;
  });
  delta->logprobs.assign(std::make_move_iterator(entries_.begin()), std::make_move_iterator(keep));
  entries_.erase(entries_.begin(), keep);
  return stopped;
}

// The longest end of pending_ that a stop string begins with.
size_t ChoiceDecoder::HeldBack() const {
  size_t held = 0;
  for (const std::string& stop : options_.stop) {
    for (size_t size = std::min(stop.size() - 1, pending_.size() - unsearched_); size > held;
         --size) {
      if (std::string_view(pending_).ends_with(std::string_view(stop).substr(0, size))) {
        held = size;
        break;
      }
    }
  }
  return held;
}

}  // namespace cadre
