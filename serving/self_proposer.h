// Self-speculation: the first layers of the model, with its own norm and head behind them, draft
// for all of it (Elhoushi et al., "LayerSkip: Enabling Early Exit Inference and Self-Speculative
// Decoding", 2024). No weights and no cache of its own: what drafting writes to the first layers'
// cache is what the whole model writes there again.
#pragma once

#include "serving/draft_forward.h"
#include "serving/draft_proposer.h"
#include "serving/model_home.h"

namespace cadre {

class SelfProposer : public DraftProposer {
 public:
  // Borrows the engine's context, model and cache. 1 <= layers <= all.
  SelfProposer(Context& ctx, const ModelHome& home, int layers, KvCache& cache)
      : ctx_(ctx), home_(home), layers_(layers), cache_(cache) {}
  void Propose(std::span<const DraftRequest> requests) override;

 private:
  Context& ctx_;
  const ModelHome& home_;
  int layers_;
  KvCache& cache_;
};

}  // namespace cadre
