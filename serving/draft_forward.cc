#include "serving/draft_forward.h"

#include "core/parallel_for.h"
#include "serving/logit_rows.h"
#include "serving/sampler.h"

namespace cadre {

std::vector<int32_t> DrawDrafts(const DraftModel& model, Allocator& allocator,
                                std::span<const PlannedTokens> reads,
                                std::span<const Sequence* const> sequences) {
  CADRE_CHECK(reads.size() == sequences.size(), "{} runs of tokens, {} sequences", reads.size(),
              sequences.size());
  StepPlan plan = PlanTokens(reads, model.cache);
  for (const KvCopy& copy : plan.copies) model.cache.Copy(copy);
  for (size_t i = 0; i < reads.size(); ++i) plan.sample_rows.push_back(plan.offsets[i + 1] - 1);
  const Batch batch = MakeBatch(allocator, plan, model.cache.pool());
  const bool all = model.layers == static_cast<int>(model.decoder.spec().layers.size());
  const Tensor hidden =
      model.decoder.ForwardLayers(model.ctx, {0, model.layers}, {}, batch).hidden.value;
  Tensor rows = GatherRows(model.ctx, hidden, plan.sample_rows);
  if (!all) rows = model.decoder.Exit(model.ctx, Var{rows}).value;
  const LogitRows logits = ComputeLogits(model.ctx, model.decoder, rows);
  std::vector<int32_t> drawn(reads.size());
  ParallelFor(model.ctx, static_cast<int64_t>(reads.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t position = reads[i].begin + static_cast<int64_t>(reads[i].tokens.size());
      drawn[i] = SampleToken(sequences[i]->request.sampling,
                             {.logits = logits.row(i), .lse = logits.lse[i], .position = position});
    }
  });
  return drawn;
}

}  // namespace cadre
