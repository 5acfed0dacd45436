#include "core/ops/attention_statistics.h"

#include "core/ops/kernel.h"

namespace cadre::ops {
namespace {

void Check(const Context& ctx, const AttentionStatisticsArgs& args) {
  const KvLayout& layout = args.kv.layout;
  const Tensor& q = args.q;
  CADRE_CHECK(q.shape().rank() == 3 && q.dim(0) > 0 && q.dim(2) == layout.key_dim &&
                  layout.kv_heads > 0 && q.dim(1) % layout.kv_heads == 0 &&
                  layout.dtype == KvPoolDType(q.dtype()),
              "attention statistics: q {} over {} KV heads of size {}", q.shape().ToString(),
              layout.kv_heads, layout.key_dim);
  CADRE_CHECK(args.kv.sequences() == 1, "attention statistics of {} sequences",
              args.kv.sequences());
  const int64_t length = args.kv.context_lengths[0];
  const bool implied = args.kv.positions == nullptr;
  CADRE_CHECK(args.keys >= 0 && args.keys <= length && (!implied || q.dim(0) <= length) &&
                  length <= args.kv.table_stride * layout.block_size,
              "attention statistics: {} queries, {} of {} keys in {} blocks", q.dim(0), args.keys,
              length, args.kv.table_stride);
  CADRE_CHECK(static_cast<int64_t>(args.query_positions.size()) == (implied ? 0 : q.dim(0)),
              "attention statistics: {} query positions", args.query_positions.size());
  CADRE_CHECK(!args.scores.defined() ||
                  (q.dim(0) == 1 && args.lse.defined() && args.scores.dim(0) == q.dim(1) &&
                   args.scores.dim(1) % kAttentionKeyTile == 0 && args.keys <= args.scores.dim(1)),
              "attention statistics: scores {} of {} keys", args.scores.shape().ToString(),
              args.keys);
  CADRE_CHECK(args.sinks == kNoParam || ctx.parameters->spec(args.sinks).shape == Shape({q.dim(1)}),
              "attention statistics: sinks");
}

void Observe(Context& ctx, const AttentionStatisticsKernelArgs& args) {
  switch (KernelFor(args.forward.q)) {
    case Kernel::kReference:
      return AttentionStatisticsReference(ctx, args);
    case Kernel::kCpu:
      return AttentionStatisticsCpu(ctx, args);
    case Kernel::kCuda:
      NoCudaKernel("attention statistics");
  }
}

}  // namespace

AttentionStatistics ObserveAttention(Context& ctx, const AttentionStatisticsArgs& args) {
  Check(ctx, args);
  const int64_t queries = args.q.dim(0), heads = args.q.dim(1);
  const DType dtype = args.q.dtype() == DType::kF64 ? DType::kF64 : DType::kF32;
  const AttentionStatistics to{ctx.Empty({heads, args.keys}, dtype),
                               ctx.Empty({heads, args.keys}, dtype), ctx.Empty({heads}, dtype)};
  const int32_t offsets[] = {0, static_cast<int32_t>(queries)};
  AttentionStatisticsKernelArgs kernel{.forward = {.q = args.q,
                                                   .kv = args.kv,
                                                   .scale = args.scale,
                                                   .window = args.sliding_window,
                                                   .offsets = offsets,
                                                   .query_positions = args.query_positions,
                                                   .lse = args.lse,
                                                   .scores = args.scores},
                                       .keys = args.keys,
                                       .to = to};
  if (!args.lse.defined()) {
    kernel.forward.lse = ctx.Empty({queries, heads}, dtype);
    PagedAttention(ctx, args.q, args.kv,
                   {.scale = args.scale,
                    .sliding_window = args.sliding_window,
                    .sinks = args.sinks,
                    .offsets = offsets},
                   args.query_positions, {.lse = kernel.forward.lse});
  }
  Observe(ctx, kernel);
  return to;
}

}  // namespace cadre::ops
