// What some queries of a sequence pay attention to: what policies of KV eviction weigh keys by
// (memory/kv_eviction.h). An op of its own, which leaves attention's bits alone.
//
// p[i, h, j] is the softmax's probability of key j for query i and query head h over all keys that
// the query sees, a sink counted in. For the first n slots of the sequence it gives
//   sum[h, j]     = sum_i p[i, h, j]
//   square[h, j]  = sum_i p[i, h, j]^2
//   entropy[h]    = - sum_i sum_j p[i, h, j] log p[i, h, j]
// Queries are summed in ascending order in fp32, then tiles of 64 keys in ascending order, so
// threads, block sizes and workers change no bit.
#pragma once

#include <span>

#include "core/ops/attention.h"

namespace cadre::ops {

struct AttentionStatisticsArgs {
  Tensor q;   // [W, H, dh]: the last W tokens of the sequence
  KvView kv;  // of one sequence, those tokens' keys and values written
  float scale = 1.0f;
  int sliding_window = 0;
  ParamId sinks = kNoParam;  // [H]
  // [W]; needed where the view has positions, else empty.
  std::span<const int32_t> query_positions = {};
  int64_t keys = 0;  // n, at most the sequence's slots
  // [W, H] of these queries, where attention has told it (PagedAttention); else it is found here.
  Tensor lse;
  // [H, N] of one query, where attention has told them: keys are not read again. Changes no bit.
  Tensor scores = {};
};
struct AttentionStatistics {
  Tensor sum, square;  // [H, n] f32 (f64)
  Tensor entropy;      // [H]
};
AttentionStatistics ObserveAttention(Context& ctx, const AttentionStatisticsArgs& args);

// One implementation's kernels. `forward` has queries of one sequence, and log-sum-exps, perhaps
// [H, N] scores, from before.
struct AttentionStatisticsKernelArgs {
  AttentionForwardArgs forward;
  int64_t keys = 0;
  AttentionStatistics to;  // written
};
void AttentionStatisticsReference(Context& ctx, const AttentionStatisticsKernelArgs& args);
void AttentionStatisticsCpu(Context& ctx, const AttentionStatisticsKernelArgs& args);

}  // namespace cadre::ops
