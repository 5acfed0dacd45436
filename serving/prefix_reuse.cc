#include "serving/prefix_reuse.h"

#include <algorithm>
#include <utility>

namespace cadre {
namespace {

// Choices share their prompt as an object, so equal prompts of strangers are not compared here.
const Sequence* FindSibling(const Sequence& sequence,
                            std::span<const std::unique_ptr<Sequence>> running) {
  const auto same = [&](const std::unique_ptr<Sequence>& other) {
    return other->evicting == nullptr && other->request.prompt == sequence.request.prompt &&
           other->request.cache_salt == sequence.request.cache_salt;
  };
  const auto it = std::ranges::find_if(running, same);
  return it == running.end() ? nullptr : it->get();
}

}  // namespace

int64_t ReusableTokens(const Sequence& sequence) {
  int64_t tokens = sequence.known_tokens() - 1;
  const bool reports = sequence.request.sampling.prompt_logprobs >= 0 &&
                       sequence.prompt_reported < sequence.prompt_tokens();
  if (reports) tokens = std::min(tokens, std::max<int64_t>(sequence.prompt_reported - 1, 0));
  const bool pools = sequence.request.pooling == Pooling::kMean &&
                     sequence.pooled_tokens < sequence.prompt_tokens();
  return pools ? std::min(tokens, sequence.pooled_tokens) : tokens;
}

Reuse ReusePrefix(KvCache& cache, Sequence& sequence,
                  std::span<const std::unique_ptr<Sequence>> running, bool may_read) {
  const PrefixRoot root{.salt = sequence.request.cache_salt};
  if (sequence.evicting != nullptr) {
    sequence.evicting->AttachPrefix(cache, root, sequence.tokens);
    return Reuse::kDone;
  }
  const int64_t limit = ReusableTokens(sequence);
  const bool fresh = cache.prefix_caching() && sequence.generated() == 0 && limit > 0;
  if (const Sequence* sibling = fresh ? FindSibling(sequence, running) : nullptr) {
    if (sibling->kv.stored() < limit) return Reuse::kAfterSibling;
    cache.Fork(sequence.kv, sibling->kv, limit);
    return Reuse::kDone;
  }
  if (limit > 0) {
    const bool start = may_read && !sequence.fetched;
    const KvCache::Fetched fetched = cache.Fetch(root, sequence.tokens, start);
    sequence.fetched |= start;
    // What is on disk still after its turn to read was too much to arrive at once.
    const bool turn_to_come = fetched == KvCache::Fetched::kOnDisk && !sequence.fetched;
    if (fetched == KvCache::Fetched::kArriving || turn_to_come) return Reuse::kAfterDisk;
  }
  cache.Attach(sequence.kv, root, sequence.tokens, limit);
  return Reuse::kDone;
}

}  // namespace cadre
