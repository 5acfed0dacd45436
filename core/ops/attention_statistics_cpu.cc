#include <algorithm>
#include <vector>

#include "core/ops/attention_statistics.h"
#include "core/ops/attention_work.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/attention_statistics_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/attention_forward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

// One tile of one KV head: all queries of its group of heads, 32 rows at a time.
template <typename F>
class TileStatistics {
 public:
  TileStatistics(const AttentionStatisticsKernelArgs& args, const F& forward, Tensor entropies)
      : args_(args),
        forward_(forward),
        heads_(args.forward.q.dim(1)),
        group_(heads_ / args.forward.kv.layout.kv_heads),
        rows_(args.forward.q.dim(0) * group_),
        entropies_(std::move(entropies)) {}

  // scratch: scratch_size() floats.
  void Run(int64_t kv_head, int64_t tile, const AttentionWork& w, float* scratch) const {
    const int64_t first = tile * kAttentionKeyTile;
    const int64_t count = std::min(kAttentionKeyTile, args_.keys - first);
    std::fill_n(scratch, group_ * (2 * kAttentionKeyTile + 1), 0.0f);
    float* const sums = scratch;
    float* const squares = sums + group_ * kAttentionKeyTile;
    float* const entropies = squares + group_ * kAttentionKeyTile;
    if (args_.forward.scores.defined()) {
      AddTold(kv_head, first, count, {sums, squares, entropies});
    } else {
      AddBlocks(kv_head, tile, count, w, {sums, squares, entropies});
    }
    for (int64_t h = 0; h < group_; ++h) {
      const int64_t head = kv_head * group_ + h, at = head * args_.keys + first;
      std::copy_n(&sums[h * kAttentionKeyTile], count, args_.to.sum.template data<float>() + at);
      std::copy_n(&squares[h * kAttentionKeyTile], count,
                  args_.to.square.template data<float>() + at);
      entropies_.template data<float>()[tile * heads_ + head] = entropies[h];
    }
  }

  int64_t scratch_size() const { return group_ * (2 * kAttentionKeyTile + 1); }

 private:
  // Of a tile: [group, tile] twice, [group].
  struct Sums {
    float *sums, *squares, *entropies;
  };

  void AddTold(int64_t kv_head, int64_t first, int64_t count, const Sums& to) const {
    const Tensor& scores = args_.forward.scores;
    for (int64_t h = 0; h < group_; ++h) {
      const int64_t head = kv_head * group_ + h;
      to.entropies[h] += Row(scores.template data<float>() + head * scores.dim(1) + first,
                             args_.forward.lse.template data<float>()[head], count,
                             &to.sums[h * kAttentionKeyTile], &to.squares[h * kAttentionKeyTile]);
    }
  }

  void AddBlocks(int64_t kv_head, int64_t tile, int64_t count, const AttentionWork& w,
                 const Sums& to) const {
    AttentionBlock block{.sequence = 0,
                         .kv_head = kv_head,
                         .tile_begin = tile,
                         .tile_end = tile + 1,
                         .key_end = args_.forward.kv.context_lengths[0]};
    for (; block.row < rows_; block.row += kAttentionRows) {
      block.rows = std::min(kAttentionRows, rows_ - block.row);
      forward_.Queries(block, w);
      forward_.Scores(block, tile, w, false);
      for (int64_t r = 0; r < block.rows; ++r) {
        const int64_t h = (block.row + r) % group_;
        const int64_t query = (block.row + r) / group_;
        const float lse =
            args_.forward.lse.template data<float>()[query * heads_ + kv_head * group_ + h];
        to.entropies[h] += Row(w.scores + r * kAttentionKeyTile, lse, count,
                               &to.sums[h * kAttentionKeyTile], &to.squares[h * kAttentionKeyTile]);
      }
    }
  }

  // Adds a row's probabilities of the tile; returns what it adds to the entropy. Scores of what is
  // hidden are minus infinity; `count` columns count.
  float Row(const float* scores, float lse, int64_t count, float* sums, float* squares) const {
    constexpr float kLn2 = 0.693147180559945309f;
    const DF df;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
    const VF scale = hn::Set(df, forward_.scale()), shift = hn::Set(df, lse);
    VF entropy = hn::Zero(df);
    for (int64_t i = 0; i < count; i += lanes) {
      const VF log_p = hn::MulSub(Load(scores + i), scale, shift);
      const auto counts = hn::FirstN(df, static_cast<size_t>(count - i));
      const VF p = hn::IfThenElseZero(counts, Exp2(df, log_p));
      Store(hn::Add(Load(sums + i), p), sums + i);
      Store(hn::MulAdd(p, p, Load(squares + i)), squares + i);
      // Zero where p is: minus infinity times zero is none.
      const auto none = hn::Eq(p, hn::Zero(df));
      entropy = hn::Sub(entropy, hn::IfThenZeroElse(none, hn::Mul(p, log_p)));
    }
    return hn::GetLane(hn::SumOfLanes(df, entropy)) * kLn2;
  }

  const AttentionStatisticsKernelArgs& args_;
  const F& forward_;
  const int64_t heads_, group_, rows_;
  const Tensor entropies_;  // [tiles, H]
};

template <typename T, typename A, typename Pool>
void Run(Context& ctx, const AttentionStatisticsKernelArgs& args, const AttentionBackend& backend) {
  const KvLayout& layout = args.forward.kv.layout;
  size_t bytes = 0;
  AttentionWork::At(nullptr, layout, &bytes);
  Tensor scratch = ctx.Empty({ctx.threads, static_cast<int64_t>(bytes)}, DType::kU8);
  const int64_t heads = args.forward.q.dim(1);
  const int64_t tiles = (args.keys + kAttentionKeyTile - 1) / kAttentionKeyTile;
  const Forward<T, A, Pool> forward(args.forward, backend);
  const Tensor entropies = ctx.Empty({tiles, heads}, DType::kF32);
  const TileStatistics<Forward<T, A, Pool>> statistics(args, forward, entropies);
  const Tensor sums = ctx.Empty({ctx.threads, statistics.scratch_size()}, DType::kF32);
  // A pass over scores that lie in the caches ends before another thread has woken.
  constexpr int64_t kScoresAlone = int64_t{1} << 19;
  Context own = ctx;
  if (args.forward.scores.defined() && args.keys * heads < kScoresAlone) own.threads = 1;
  ParallelUnits(own, layout.kv_heads * tiles, [&](int64_t unit) {
    const int64_t thread = omp_get_thread_num();
    const AttentionWork w = AttentionWork::At(scratch.raw() + thread * bytes, layout, nullptr);
    backend.begin();
    statistics.Run(unit / tiles, unit % tiles, w,
                   sums.data<float>() + thread * statistics.scratch_size());
    backend.end();
  });
  float* to = args.to.entropy.data<float>();
  std::fill_n(to, heads, 0.0f);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t h = 0; h < heads; ++h) to[h] += entropies.data<float>()[tile * heads + h];
  }
}

void StatisticsAny(Context& ctx, const AttentionStatisticsKernelArgs& args) {
  const AttentionForwardArgs& forward = args.forward;
  const KvLayout& layout = forward.kv.layout;
  const AttentionBackend backend =
      AttentionBackendFor(forward.q.dtype(), layout.pairs(), forward.kernel);
  switch (forward.q.dtype()) {
    case DType::kF32:
      return layout.quantized() ? Run<float, float, BF16>(ctx, args, backend)
                                : Run<float, float, float>(ctx, args, backend);
    case DType::kF16:
      return layout.quantized() ? Run<F16, float, BF16>(ctx, args, backend)
                                : Run<F16, float, float>(ctx, args, backend);
    case DType::kBF16:
      return backend.bf16 ? Run<BF16, BF16, BF16>(ctx, args, backend)
                          : Run<BF16, float, BF16>(ctx, args, backend);
    default:
      CADRE_CHECK(false, "attention statistics of dtype {}", static_cast<int>(forward.q.dtype()));
  }
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(StatisticsAny);

void AttentionStatisticsCpu(Context& ctx, const AttentionStatisticsKernelArgs& args) {
  HWY_DYNAMIC_DISPATCH(StatisticsAny)(ctx, args);
}

}  // namespace cadre::ops
#endif
