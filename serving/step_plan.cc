#include "serving/step_plan.h"

#include <algorithm>

namespace cadre {
namespace {

KvTable BuildTable(std::span<const ScheduledChunk> chunks, const KvCache& cache) {
  KvTable table{.stride = 1};
  for (const ScheduledChunk& chunk : chunks) {
    table.stride = std::max(table.stride, static_cast<int64_t>(chunk.sequence->kv.blocks().size()));
  }
  table.blocks.resize(chunks.size() * static_cast<size_t>(table.stride));
  auto row = table.blocks.begin();
  for (const ScheduledChunk& chunk : chunks) {
    std::ranges::copy(chunk.sequence->kv.blocks(), row);
    row += table.stride;
    table.context_lengths.push_back(static_cast<int32_t>(chunk.end()));
    for (int64_t p = chunk.begin; p < chunk.end(); ++p) {
      table.slots.push_back(cache.Slot(chunk.sequence->kv, p));
    }
  }
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

StepPlan BuildStepPlan(std::span<const ScheduledChunk> chunks, KvCache& cache) {
  StepPlan plan{.copies = cache.TakeCopies(), .offsets = {0}};
  for (const ScheduledChunk& chunk : chunks) {
    for (int64_t p = chunk.begin; p < chunk.end(); ++p) {
      plan.ids.push_back(chunk.sequence->tokens[p]);
      plan.positions.push_back(static_cast<int32_t>(p));
    }
    for (RowRange rows : ScoredRows(chunk)) {
      rows.begin += plan.offsets.back();
      plan.scored.push_back(rows);
    }
    plan.offsets.push_back(static_cast<int32_t>(plan.tokens()));
    if (chunk.samples()) plan.sample_rows.push_back(plan.tokens() - 1);
  }
  plan.tables.push_back(BuildTable(chunks, cache));
  return plan;
}

Batch MakeBatch(Allocator& allocator, const StepPlan& plan, const KvBlockPool& pool) {
  Batch batch;
  batch.ids = Tensor::Of<int32_t>(allocator, {plan.tokens()}, plan.ids);
  batch.positions = Tensor::Of<int32_t>(allocator, {plan.tokens()}, plan.positions);
  batch.offsets = plan.offsets;
  for (int layer = 0; layer < pool.layers(); ++layer) {
    const KvTable& table = plan.tables[plan.tables.size() == 1 ? 0 : layer];
    batch.kv.push_back({.view = {.data = pool.data(layer),
                                 .layout = pool.layout(layer),
                                 .block_tables = table.blocks,
                                 .table_stride = table.stride,
                                 .context_lengths = table.context_lengths},
                        .slots = table.slots});
  }
  return batch;
}

}  // namespace cadre
