#include "serving/self_proposer.h"

namespace cadre {

void SelfProposer::Propose(std::span<const DraftRequest> requests) {
  const DraftModel model{ctx_, home_.model()->decoder(), layers_, cache_};
  for (int64_t round = 0;; ++round) {
    std::vector<PlannedTokens> reads;
    std::vector<const Sequence*> sequences;
    std::vector<Sequence*> drafting;
    for (const DraftRequest& request : requests) {
      Sequence& s = *request.sequence;
      if (round >= request.most) continue;
      const int32_t& last = round == 0 ? s.tokens.back() : s.draft.back();
      reads.push_back({&s.kv, std::span(&last, 1), s.known_tokens() - 1 + round});
      sequences.push_back(&s);
      drafting.push_back(&s);
    }
    if (reads.empty()) return;
    const std::vector<int32_t> drawn = DrawDrafts(model, *ctx_.allocator, reads, sequences);
    for (size_t i = 0; i < drawn.size(); ++i) drafting[i]->draft.push_back(drawn[i]);
  }
}

}  // namespace cadre
