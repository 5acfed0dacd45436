#include "serving/step_plan.h"

#include <algorithm>

namespace cadre {
namespace {

// Of sequences that evict nothing; `first`: the unit of block 0.
void AddRun(const PlannedTokens& run, const KvCache& cache, int32_t first, KvTable& table,
            int32_t* row) {
  for (const int32_t block : run.kv->blocks()) *row++ = first + block;
  const int64_t end = run.begin + static_cast<int64_t>(run.tokens.size());
  table.context_lengths.push_back(static_cast<int32_t>(end));
  for (int64_t p = run.begin; p < end; ++p) {
    table.slots.push_back(first * cache.block_size() + cache.Slot(*run.kv, p));
  }
}

void AddKept(const KeptKv& kept, int layer, KvTable& table, int32_t* row) {
  table.context_lengths.push_back(static_cast<int32_t>(kept.count(layer)));
  if (!kept.policy().positions_in_cache()) {
    std::ranges::copy(kept.table(layer), row);
    table.slots.push_back(kept.NewestSlot(layer));
    return;
  }
  std::ranges::copy(kept.scratch(), row);
  table.slots.push_back(-1);
  table.unrotated_slots.resize(table.slots.size(), -1);
  table.unrotated_slots.back() = kept.NewestSlot(layer);
  KvRotation rotation{.from = kept.Ordered(layer)};
  for (size_t i = 0; i < rotation.from.size(); ++i) {
    rotation.to.push_back(kept.ScratchSlot(static_cast<int64_t>(i)));
  }
  table.rotations.push_back(std::move(rotation));
}

int64_t Width(const PlannedTokens& run, int layer) {
  if (run.evicting == nullptr) return static_cast<int64_t>(run.kv->blocks().size());
  const KeptKv& kept = run.evicting->kept();
  return static_cast<int64_t>(std::max(kept.table(layer).size(), kept.scratch().size()));
}

// `units`: the layers have tables of their own.
KvTable BuildTable(std::span<const PlannedTokens> runs, const KvCache& cache, int layer,
                   bool units) {
  KvTable table{.stride = 1};
  for (const PlannedTokens& run : runs) table.stride = std::max(table.stride, Width(run, layer));
  table.blocks.resize(runs.size() * static_cast<size_t>(table.stride));
  int32_t* row = table.blocks.data();
  const int32_t first = units ? cache.pool().Unit(layer, 0) : 0;
  for (const PlannedTokens& run : runs) {
    if (run.evicting == nullptr) {
      AddRun(run, cache, first, table, row);
    } else {
      AddKept(run.evicting->kept(), layer, table, row);
    }
    row += table.stride;
  }
  if (!table.unrotated_slots.empty()) table.unrotated_slots.resize(table.slots.size(), -1);
  return table;
}

}  // namespace

std::vector<RowRange> ScoredRows(const ScheduledChunk& chunk) {
  // Few at a time, so that the logits of a long prompt never lie in memory together.
  constexpr int64_t kSlice = 64;
  const Sequence& sequence = *chunk.sequence;
  std::vector<RowRange> rows;
  if (sequence.request.sampling.prompt_logprobs < 0) return rows;
  // A row tells of the token behind it; the first token has none before it.
  const int64_t begin = std::max<int64_t>(sequence.prompt_reported, 1) - 1;
  const int64_t end = std::min(chunk.end(), sequence.prompt_tokens() - 1);
  if (begin < chunk.begin) return rows;
  for (int64_t row = begin; row < end; row += kSlice) {
    rows.push_back({row - chunk.begin, std::min(kSlice, end - row)});
  }
  return rows;
}

RowRange PooledRows(const ScheduledChunk& chunk) {
  const Sequence& sequence = *chunk.sequence;
  if (sequence.request.pooling == Pooling::kNone) return {};
  const int64_t prompt = sequence.prompt_tokens();
  const bool mean = sequence.request.pooling == Pooling::kMean;
  const int64_t begin = std::max(chunk.begin, mean ? sequence.pooled_tokens : prompt - 1);
  const int64_t end = std::min(chunk.end(), prompt);
  return begin < end ? RowRange{begin - chunk.begin, end - begin} : RowRange{};
}

StepPlan PlanTokens(std::span<const PlannedTokens> runs, KvCache& cache) {
  StepPlan plan{.copies = cache.TakeCopies(), .offsets = {0}};
  for (const PlannedTokens& run : runs) {
    plan.ids.insert(plan.ids.end(), run.tokens.begin(), run.tokens.end());
    for (size_t i = 0; i < run.tokens.size(); ++i) {
      const int64_t index = run.begin + static_cast<int64_t>(i);
      plan.positions.push_back(run.evicting == nullptr ? static_cast<int32_t>(index)
                                                       : run.evicting->Position(index));
    }
    plan.offsets.push_back(static_cast<int32_t>(plan.tokens()));
  }
  const bool units =
      std::ranges::any_of(runs, [](const PlannedTokens& run) { return run.evicting != nullptr; });
  for (int layer = 0; layer < (units ? cache.pool().layers() : 1); ++layer) {
    plan.tables.push_back(BuildTable(runs, cache, layer, units));
  }
  return plan;
}

StepPlan BuildStepPlan(std::span<const ScheduledChunk> chunks, KvCache& cache) {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<PlannedTokens> runs;
  tokens.reserve(chunks.size());
  for (const ScheduledChunk& chunk : chunks) {
    tokens.push_back(chunk.Tokens());
    runs.push_back(
        {&chunk.sequence->kv, tokens.back(), chunk.begin, chunk.sequence->evicting.get()});
  }
  StepPlan plan = PlanTokens(runs, cache);
  for (size_t i = 0; i < chunks.size(); ++i) {
    for (RowRange rows : ScoredRows(chunks[i])) {
      rows.begin += plan.offsets[i];
      plan.scored.push_back(rows);
    }
    if (RowRange rows = PooledRows(chunks[i]); rows.count > 0) {
      rows.begin += plan.offsets[i];
      plan.pooled.push_back(rows);
    }
    for (int64_t row = 0; row < chunks[i].sampled_rows(); ++row) {
      plan.sample_rows.push_back(plan.offsets[i + 1] - chunks[i].sampled_rows() + row);
    }
  }
  return plan;
}

Batch MakeBatch(Allocator& allocator, const StepPlan& plan, const KvBlockPool& pool) {
  Batch batch;
  batch.ids = Tensor::Of<int32_t>(allocator, {plan.tokens()}, plan.ids);
  batch.positions = Tensor::Of<int32_t>(allocator, {plan.tokens()}, plan.positions);
  batch.offsets = plan.offsets;
  for (int layer = 0; layer < pool.layers(); ++layer) {
    const bool units = plan.tables.size() > 1;
    const KvTable& table = plan.tables[units ? layer : 0];
    batch.kv.push_back({.view = {.data = pool.data(units ? 0 : layer),
                                 .layout = pool.layout(layer),
                                 .block_tables = table.blocks,
                                 .table_stride = table.stride,
                                 .context_lengths = table.context_lengths},
                        .slots = table.slots,
                        .unrotated_slots = table.unrotated_slots,
                        .rotations = table.rotations});
  }
  return batch;
}

}  // namespace cadre
