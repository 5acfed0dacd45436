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
  std::vector<StepPlan> plans = lanes_->BuildPlans(chunks);
  int64_t tokens = 0;
  for (const StepPlan& plan : plans) tokens += plan.tokens();
  TraceScope scope(options_.trace, "step", {{"sequences", scheduled.size()}, {"tokens", tokens}});
  StepForward forward(ctx_, *home_->model(), options_.ranks);
  if (!chunks.empty()) CADRE_RETURN_IF_ERROR(RunChunks(forward, chunks, plans));
  ReadShares(forward, shares, &chunks, &plans.front());
  int64_t by_layers = 0;
  for (const ScheduledChunk& share : shares) by_layers += share.tokens;
  CountWork(cost_.Of(plans, by_layers));
  return Sample(forward, chunks, plans);
}

void Engine::CountWork(const StepWork& work) {
  std::lock_guard lock(mutex_);
  stats_.model_flops += work.flops;
  stats_.model_bytes += work.bytes;
}

// Lets evicting sequences look at their newest tokens' attention.
static BatchObserver ObserverOf(std::span<const ScheduledChunk> chunks, const StepPlan& plan) {
  BatchObserver observer;
  for (size_t i = 0; i < chunks.size(); ++i) {
    const EvictingSequence* evicting = chunks[i].sequence->evicting.get();
    if (evicting != nullptr && evicting->looks()) observer.sequences.push_back(static_cast<int>(i));
  }
  if (std::ranges::none_of(chunks, [](const auto& c) { return c.sequence->evicting != nullptr; })) {
    return observer;
  }
  observer.call = [chunks, &plan](Context& ctx, const LayerQueries& queries) {
    int64_t observed = 0;
    for (size_t i = 0; i < chunks.size(); ++i) {
      EvictingSequence* evicting = chunks[i].sequence->evicting.get();
      if (evicting == nullptr) continue;
      evicting->Settle(ctx, queries, {plan.offsets[i], static_cast<int64_t>(i), observed});
      observed += evicting->looks();
    }
  };
  return observer;
}

absl::Status Engine::RunChunks(StepForward& forward, std::span<const ScheduledChunk> chunks,
                               std::span<const StepPlan> plans) {
  CADRE_RETURN_IF_ERROR(Tell({.kind = StepKind::kRun,
                              .weight_version = weight_version(),
                              .plans = {plans.begin(), plans.end()}}));
  const StepPlan& plan = plans.front();
  for (const KvCopy& copy : plan.copies) lanes_->own_cache().Copy(copy);
  forward.Run(plans, lanes_->own_cache().pool(), options_.attention_workers,
              ObserverOf(chunks, plan));
  CADRE_RETURN_IF_ERROR(Failure());
  load_.Count(forward.routing());
  ReadPrompts(forward, chunks, plans);
  for (const ScheduledChunk& chunk : chunks) {
    Commit(*chunk.sequence, std::min(chunk.end(), chunk.sequence->known_tokens()));
  }
  return absl::OkStatus();
}

// In the order that other ranks follow, see StepForward.
void Engine::ReadPrompts(StepForward& forward, std::span<const ScheduledChunk> chunks,
                         std::span<const StepPlan> plans) {
  std::vector<int64_t> first_rows;  // in the chunks' lanes
  std::vector<size_t> seen(plans.size(), 0);
  for (const ScheduledChunk& chunk : chunks) {
    const auto lane = static_cast<size_t>(chunk.sequence->lane);
    first_rows.push_back(plans[lane].offsets[seen[lane]++]);
  }
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (chunks[i].sequence->request.sampling.prompt_logprobs >= 0) {
      ReportPrompt(ctx_, forward, chunks[i], first_rows[i]);
    }
  }
  for (size_t i = 0; i < chunks.size(); ++i) {
    const RowRange rows = PooledRows(chunks[i]);
    if (rows.count == 0) continue;
    PoolHidden(ctx_, chunks[i],
               forward.Hidden(chunks[i].sequence->lane, {first_rows[i] + rows.begin, rows.count}));
  }
}

void Engine::ReadShares(StepForward& forward, std::span<const ScheduledChunk> shares,
                        std::vector<ScheduledChunk>* chunks, StepPlan* plan) {
  for (const ScheduledChunk& share : shares) {
    Sequence& sequence = *share.sequence;
    EvictingSequence& evicting = *sequence.evicting;
    evicting.Read({.ctx = ctx_,
                   .model = *home_->model(),
                   .cache = lanes_->own_cache(),
                   .prompt = sequence.tokens,
                   .attention_workers = options_.attention_workers,
                   .load = &load_},
                  share.tokens);
    if (!evicting.read()) continue;
    plan->sample_rows.push_back(forward.Join(evicting.last_hidden()));
    chunks->push_back({.sequence = &sequence, .begin = sequence.known_tokens() - 1, .tokens = 1});
  }
}

}  // namespace cadre
