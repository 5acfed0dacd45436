// What queries pay attention to, and attention over what a policy keeps of each head.
#include "core/ops/attention_statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "core/ops/attention_test_util.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

using testing_attention::Batch;
using testing_attention::Case;
using testing_attention::Paged;
using testing_attention::Wide;

// The last `queries` tokens of one sequence, over all its keys but the last `apart`.
AttentionStatisticsArgs Observed(const Case& c, Batch& b, const Paged& paged, int64_t queries,
                                 int64_t apart) {
  return {.q = b.q.Narrow(b.q.dim(0) - queries, queries),
          .kv = paged.view,
          .scale = b.args.scale,
          .sliding_window = c.window,
          .sinks = b.args.sinks,
          .keys = b.q.dim(0) - apart};
}

const Case kCases[] = {{{0, 230}, {4, 2, 64, 64}},
                       {{0, 150}, {8, 1, 80, 48}, 50},
                       {{0, 129}, {3, 3, 48, 32}, 0, true}};

constexpr KvQuantization kKinds[] = {KvQuantization::kNone, KvQuantization::kInt8,
                                     KvQuantization::kInt4};

// The reference over the bytes that the kernel read.
AttentionStatistics Reference(Batch& b, const AttentionStatisticsArgs& args) {
  const int64_t queries = args.q.dim(0), heads = args.q.dim(1);
  const std::vector<int32_t> offsets = {0, static_cast<int32_t>(queries)};
  AttentionForwardArgs forward{
      .q = Wide(b.ctx, args.q),
      .kv = args.kv,
      .scale = args.scale,
      .window = args.sliding_window,
      .offsets = offsets,
      .query_positions = args.query_positions,
      .out = b.ctx.Empty({queries, heads, args.kv.layout.value_dim}, DType::kF64),
      .lse = b.ctx.Empty({queries, heads}, DType::kF64)};
  if (args.sinks != kNoParam) {
    forward.sinks = Wide(b.ctx, b.store.Acquire(args.sinks, Lease::kForward));
    b.store.Release(args.sinks, Lease::kForward);
  }
  AttentionForwardReference(b.ctx, forward);
  const AttentionStatistics to{b.ctx.Empty({heads, args.keys}, DType::kF64),
                               b.ctx.Empty({heads, args.keys}, DType::kF64),
                               b.ctx.Empty({heads}, DType::kF64)};
  AttentionStatisticsReference(b.ctx, {forward, args.keys, to});
  return to;
}

TEST(AttentionStatistics, AgreeWithTheReference) {
  for (const Case& c : kCases) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      for (KvQuantization kind : kKinds) {
        Batch b(c, dtype);
        const Paged paged(b.ctx, b.k, b.v, b.offsets, 32, kind);
        for (int64_t queries : {1, 32}) {
          const AttentionStatisticsArgs args = Observed(c, b, paged, queries, queries / 2);
          const AttentionStatistics got = ObserveAttention(b.ctx, args), want = Reference(b, args);
          const double tolerance = dtype == DType::kF32 ? 1e-5 : 1e-3;
          EXPECT_LE(RelativeError(got.sum, want.sum), tolerance);
          EXPECT_LE(RelativeError(got.square, want.square), tolerance);
          EXPECT_LE(RelativeError(got.entropy, want.entropy), tolerance);
        }
      }
    }
  }
}

// What attention told of its scores gives the bits of reading keys again, in any company.
TEST(AttentionStatistics, ScoresThatAttentionToldChangeNoBit) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (KvQuantization kind : kKinds) {
      Batch b({{0, 90, 230, 430}, {8, 2, 64, 64}}, dtype);
      const Paged paged(b.ctx, b.k, b.v, b.offsets, 32, kind);
      // The first and the last sequence have one query each, the one between five.
      const std::vector<int32_t> offsets = {0, 1, 6, 7}, rows = {0, -1, 1};
      const Tensor q = b.ctx.Empty({7, 8, 64}, b.q.dtype());
      const size_t bytes = b.q.bytes() / 430;
      std::memcpy(q.raw(), b.q.raw() + 89 * bytes, bytes);
      std::memcpy(q.raw() + bytes, b.q.raw() + 225 * bytes, 5 * bytes);
      std::memcpy(q.raw() + 6 * bytes, b.q.raw() + 429 * bytes, bytes);
      b.args.offsets = offsets;
      for (int workers : {1, 3}) {
        b.args.workers = workers;
        const AttentionTold told{.lse = b.ctx.Empty({7, 8}, DType::kF32),
                                 .scores = b.ctx.Empty({2, 8, 256}, DType::kF32),
                                 .score_rows = rows};
        const Tensor out = PagedAttention(b.ctx, q, paged.view, b.args, {}, told);
        EXPECT_TRUE(SameBits(out, PagedAttention(b.ctx, q, paged.view, b.args)));
        for (int64_t s : {0, 2}) {
          const int64_t row = s == 0 ? 0 : 6, keys = s == 0 ? 90 : 200;
          KvView view = paged.view;
          view.block_tables = view.block_tables.subspan(static_cast<size_t>(s * view.table_stride),
                                                        static_cast<size_t>(view.table_stride));
          view.context_lengths = view.context_lengths.subspan(static_cast<size_t>(s), 1);
          AttentionStatisticsArgs args{.q = q.Narrow(row, 1),
                                       .kv = view,
                                       .scale = b.args.scale,
                                       .keys = keys - 1,
                                       .lse = told.lse.Narrow(row, 1)};
          const AttentionStatistics want = ObserveAttention(b.ctx, args);
          args.scores = told.scores.Narrow(s / 2, 1).Reshape({8, 256});
          const AttentionStatistics got = ObserveAttention(b.ctx, args);
          EXPECT_TRUE(SameBits(want.sum, got.sum));
          EXPECT_TRUE(SameBits(want.square, got.square));
          EXPECT_TRUE(SameBits(want.entropy, got.entropy));
        }
      }
    }
  }
}

// Of all keys, and without a sink, probabilities of a query add up to one; uniform ones have the
// largest entropy there is.
TEST(AttentionStatistics, AddUpToTheQueries) {
  Batch b({{0, 100}, {2, 2, 32, 32}}, DType::kF64);
  Paged paged(b.ctx, b.k, b.v, b.offsets, 16);
  AttentionStatisticsArgs args{
      .q = b.q.Narrow(90, 10), .kv = paged.view, .scale = 0.3f, .keys = 100};
  const AttentionStatistics got = ObserveAttention(b.ctx, args);
  const double* sums = got.sum.data<double>();
  EXPECT_NEAR(std::accumulate(sums, sums + 100, 0.0), 10.0, 1e-9);
  args.scale = 0;
  double most = 0;
  for (int i = 91; i <= 100; ++i) most += std::log(i);
  EXPECT_NEAR(ObserveAttention(b.ctx, args).entropy.data<double>()[1], most, 1e-9);
}

TEST(AttentionStatistics, BitsDoNotDependOnThreadsOrBlocks) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Batch b(kCases[0], dtype);
    b.ctx.threads = 1;
    const Paged first(b.ctx, b.k, b.v, b.offsets, 16);
    const AttentionStatistics want = ObserveAttention(b.ctx, Observed(kCases[0], b, first, 40, 8));
    b.ctx.threads = 3;
    for (int block_size : {48, 64, 128}) {
      const Paged paged(b.ctx, b.k, b.v, b.offsets, block_size);
      const AttentionStatistics got = ObserveAttention(b.ctx, Observed(kCases[0], b, paged, 40, 8));
      EXPECT_TRUE(SameBits(want.sum, got.sum));
      EXPECT_TRUE(SameBits(want.square, got.square));
      EXPECT_TRUE(SameBits(want.entropy, got.entropy));
    }
  }
}

// A cache after an eviction: each KV head keeps tokens of its own, the one with fewer has empty
// slots. Decoding reads what each head kept at the positions that it was written for.
struct Kept {
  static constexpr int32_t kTokens = 300;
  Batch whole;
  std::vector<std::vector<int32_t>> of_head{2};  // kept tokens, ascending
  std::vector<int32_t> tables, lengths, positions;
  std::vector<std::byte> pool;
  KvView view;

  Kept(DType dtype, int block_size, KvQuantization kind)
      : whole({{0, kTokens}, {4, 2, 64, 64}, 120}, dtype) {
    for (int32_t t = 0; t < kTokens; ++t) {
      if (t % 3 != 0 || t > 290) of_head[0].push_back(t);
      if (t % 5 < 2 || t > 290) of_head[1].push_back(t);
    }
    const auto slots = static_cast<int64_t>(of_head[0].size());
    view.layout = {dtype, 2, 64, 64, block_size, kind};
    view.table_stride = slots / block_size + 1;
    for (int64_t b = 0; b < view.table_stride; ++b) {
      tables.push_back(static_cast<int32_t>(view.table_stride - 1 - b));
    }
    lengths = {static_cast<int32_t>(slots)};
    pool.assign(static_cast<size_t>(view.table_stride) * KvBlockBytes(view.layout), std::byte{0});
    positions.assign(static_cast<size_t>(view.table_stride * 2 * block_size), -1);
    view.data = pool.data();
    view.block_tables = tables;
    view.context_lengths = lengths;
    view.positions = positions.data();
    Fill(slots);
  }

  // Slot by slot; a head without a token there gets another one's, which its position hides.
  void Fill(int64_t slots) {
    const int64_t size = view.layout.block_size;
    const Tensor k = whole.ctx.Empty({slots, 2, 64}, whole.k.dtype());
    const Tensor v = whole.ctx.Empty({slots, 2, 64}, whole.k.dtype());
    std::vector<int64_t> to;
    for (int64_t i = 0; i < slots; ++i) {
      const int64_t block = tables[i / size];
      to.push_back(block * size + i % size);
      for (int64_t h = 0; h < 2; ++h) {
        const bool has = i < static_cast<int64_t>(of_head[h].size());
        const int32_t token = has ? of_head[h][i] : 0;
        if (has) positions[(block * 2 + h) * size + i % size] = token;
        const auto copy = [&](const Tensor& all, const Tensor& part) {
          const size_t bytes = 64 * SizeOf(all.dtype());
          std::memcpy(part.raw() + (i * 2 + h) * bytes, all.raw() + (token * 2 + h) * bytes, bytes);
        };
        copy(whole.k, k);
        copy(whole.v, v);
      }
    }
    WriteKv(whole.ctx, {k, v, to, view.data, view.layout});
  }
};

TEST(KeptKeys, DecodeSeesWhatEachHeadKept) {
  const std::vector<int32_t> offsets = {0, 2}, queries = {Kept::kTokens - 2, Kept::kTokens - 1};
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (KvQuantization kind : kKinds) {
      Kept kept(dtype, 16, kind);
      Batch& b = kept.whole;
      b.args.offsets = offsets;
      const Tensor q = b.q.Narrow(Kept::kTokens - 2, 2);
      const Tensor got = PagedAttention(b.ctx, q, kept.view, b.args, queries);
      AttentionForwardArgs want{.q = Wide(b.ctx, q),
                                .kv = kept.view,
                                .scale = b.args.scale,
                                .window = b.args.sliding_window,
                                .offsets = offsets,
                                .query_positions = queries,
                                .out = b.ctx.Empty(got.shape(), DType::kF64)};
      AttentionForwardReference(b.ctx, want);
      EXPECT_LE(RelativeError(got, want.out), dtype == DType::kF32 ? 1e-5 : 1e-2);
      // The order of the slots is the only thing that a bit depends on.
      for (int block_size : {48, 64}) {
        Kept other(dtype, block_size, kind);
        for (int workers : {1, 3, 8}) {
          b.args.workers = workers;
          EXPECT_TRUE(SameBits(got, PagedAttention(b.ctx, q, other.view, b.args, queries)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace cadre::ops
