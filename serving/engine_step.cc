// One step of the engine: the forward of what is planned, up to the rows that are sampled.
#include <algorithm>
#include <iterator>

#include "core/trace.h"
#include "serving/engine.h"
#include "serving/pooling.h"

namespace cadre {

absl::Status Engine::Step(std::span<const ScheduledChunk> scheduled) {
  std::vector<ScheduledChunk> chunks, shares;
  std::ranges::partition_copy(scheduled, std::back_inserter(shares), std::back_inserter(chunks),
                              &ScheduledChunk::by_layers);
  for (const ScheduledChunk& chunk : chunks) {
    if (chunk.sequence->evicting != nullptr) chunk.sequence->evicting->Append(chunk.begin);
  }
  StepPlan plan = BuildStepPlan(chunks, *cache_);
  TraceScope scope(options_.trace, "step",
                   {{"sequences", scheduled.size()}, {"tokens", plan.tokens()}});
  StepForward forward(ctx_, *home_->model(), options_.ranks);
  if (!chunks.empty()) CADRE_RETURN_IF_ERROR(RunChunks(forward, chunks, plan));
  ReadShares(forward, shares, &chunks, &plan);
  return Sample(forward, chunks, plan);
}

absl::Status Engine::RunChunks(StepForward& forward, std::span<const ScheduledChunk> chunks,
                               const StepPlan& plan) {
  CADRE_RETURN_IF_ERROR(
      Tell({.kind = StepKind::kRun, .weight_version = weight_version(), .plan = plan}));
  for (const KvCopy& copy : plan.copies) cache_->Copy(copy);
  LayerObserver observe;
  if (std::ranges::any_of(chunks, [](const auto& c) { return c.sequence->evicting != nullptr; })) {
    observe = [&](Context& ctx, const LayerQueries& queries) {
      for (size_t i = 0; i < chunks.size(); ++i) {
        EvictingSequence* evicting = chunks[i].sequence->evicting.get();
        if (evicting != nullptr)
          evicting->Settle(ctx, queries, plan.offsets[i], static_cast<int64_t>(i));
      }
    };
  }
  forward.Run(plan, cache_->pool(), options_.attention_workers, observe);
  CADRE_RETURN_IF_ERROR(Failure());
  load_.Count(forward.routing());
  for (size_t i = 0; i < chunks.size(); ++i) {
    Sequence& sequence = *chunks[i].sequence;
    if (sequence.request.sampling.prompt_logprobs >= 0)
      ReportPrompt(forward, chunks[i], plan.offsets[i]);
    Commit(sequence, std::min(chunks[i].end(), sequence.known_tokens()));
  }
  for (size_t i = 0; i < chunks.size(); ++i) {
    const RowRange rows = PooledRows(chunks[i]);
    if (rows.count == 0) continue;
    PoolHidden(ctx_, chunks[i], forward.Hidden({plan.offsets[i] + rows.begin, rows.count}));
  }
  return absl::OkStatus();
}

void Engine::ReadShares(StepForward& forward, std::span<const ScheduledChunk> shares,
                        std::vector<ScheduledChunk>* chunks, StepPlan* plan) {
  for (const ScheduledChunk& share : shares) {
    Sequence& sequence = *share.sequence;
    EvictingSequence& evicting = *sequence.evicting;
    evicting.Read({.ctx = ctx_,
                   .model = *home_->model(),
                   .cache = *cache_,
                   .prompt = sequence.tokens,
                   .attention_workers = options_.attention_workers},
                  share.tokens);
    if (!evicting.read()) continue;
    plan->sample_rows.push_back(forward.Join(evicting.last_hidden()));
    chunks->push_back({.sequence = &sequence, .begin = sequence.known_tokens() - 1, .tokens = 1});
  }
}

}  // namespace cadre
