// StepPlan: one engine step as plain data, all that a rank with the weights and a KV pool of its
// own needs to run it: tokens, where their keys and values go, which rows are sampled. Rank 0
// builds it from what the scheduler chose; it names no object of the scheduler.
//
// S sequences, T tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "memory/kv_cache.h"
#include "model/batch.h"
#include "serving/sequence.h"

namespace cadre {

// Where the sequences' keys and values lie in the pool. A block is one of all layers or, where
// layers have tables of their own, a unit of the pool (KvBlockPool::Unit).
struct KvTable {
  int64_t stride = 0;
  std::vector<int32_t> blocks;           // [S, stride] ids; past a sequence's own anything
  std::vector<int32_t> context_lengths;  // [S] slots in use, the step's tokens included
  std::vector<int64_t> slots;            // [T] where the step's tokens go, see ops::WriteKvArgs
  // Of sequences whose keys are kept unrotated, see KvLayer; not told to other ranks.
  std::vector<int64_t> unrotated_slots;
  std::vector<KvRotation> rotations;
};

// Rows [begin, begin + count) of a step's tokens.
struct RowRange {
  int64_t begin = 0, count = 0;
};

struct StepPlan {
  std::vector<KvCopy> copies;           // of blocks, to be made in this order before the forward
  std::vector<int32_t> ids, positions;  // [T]
  std::vector<int32_t> offsets;         // [S + 1]
  std::vector<KvTable> tables;          // one for all layers, or one per layer
  std::vector<int64_t> sample_rows;     // ascending rows of T whose next token is sampled
  std::vector<RowRange> scored;         // rows that prompt logprobs are read from, few at a time
  std::vector<RowRange> pooled;         // rows whose hidden states embeddings are made of

  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
};

// The chunk's rows, counted from its first, whose next prompt tokens' logprobs have yet to be told.
std::vector<RowRange> ScoredRows(const ScheduledChunk& chunk);

// The chunk's rows, counted from its first, that its prompt's embedding is made of and that have
// not been taken in yet; none: 0 of them.
RowRange PooledRows(const ScheduledChunk& chunk);

// Tokens of one sequence, the first of which is its token `begin`, with room for them.
struct PlannedTokens {
  const KvSequence* kv;
  std::span<const int32_t> tokens;
  int64_t begin;
  const EvictingSequence* evicting = nullptr;  // where it evicts: one token, which was appended
};

// The plan of such runs, one a sequence; nothing is sampled. Takes the copies that the cache asks
// for.
StepPlan PlanTokens(std::span<const PlannedTokens> runs, KvCache& cache);

// The plan of the chunks, in their order, each with room for its tokens in `cache`; none by layers.
StepPlan BuildStepPlan(std::span<const ScheduledChunk> chunks, KvCache& cache);

// What the decoder runs. Borrows the plan's tables and the pool; both outlive the batch.
Batch MakeBatch(Allocator& allocator, const StepPlan& plan, const KvBlockPool& pool);

}  // namespace cadre
