#include "core/ops/attention.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "core/host_allocator.h"
#include "core/ops/attention_test_util.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

using testing_attention::Batch;
using testing_attention::Case;
using testing_attention::ForEachBatch;
using testing_attention::Normal;
using testing_attention::Paged;

void Check(const Case& c) {
  const int64_t tokens = c.offsets.back();
  OpCase op_case{.inputs = {{tokens, c.dims.heads, c.dims.dk},
                            {tokens, c.dims.kv_heads, c.dims.dk},
                            {tokens, c.dims.kv_heads, c.dims.dv}},
                 .op = [&](Context& ctx, std::span<const Var> x, std::span<const ParamId> p) {
                   return Attention(ctx, x[0], x[1], x[2],
                                    {.scale = 0.25f,
                                     .sliding_window = c.window,
                                     .sinks = c.sinks ? p[0] : kNoParam,
                                     .offsets = c.offsets});
                 }};
  if (c.sinks) op_case.params = {{c.dims.heads}};
  CheckOp(op_case);
}

TEST(Attention, AgreesWithReferenceAndFiniteDifferences) {
  Check({{0, 7}, {2, 2, 8, 8}});
  Check({{0, 5, 6, 6, 15}, {4, 2, 8, 8}});  // a sequence of one, an empty one
  Check({{0, 3, 12}, {3, 1, 24, 16}, 4});
  Check({{0, 11}, {2, 1, 8, 24}, 0, true});
  Check({{0, 1, 9}, {2, 2, 16, 8}, 3, true});
}

// Longer than the finite differences bear: every kernel against the reference.
void CheckLong(const Case& c, double scale = 0.125) {
  const int64_t tokens = c.offsets.back();
  OpCase op_case{.inputs = {{tokens, c.dims.heads, c.dims.dk},
                            {tokens, c.dims.kv_heads, c.dims.dk},
                            {tokens, c.dims.kv_heads, c.dims.dv}},
                 .op = [&](Context& ctx, std::span<const Var> x, std::span<const ParamId> p) {
                   return Attention(ctx, x[0], x[1], x[2],
                                    {.scale = static_cast<float>(scale),
                                     .sliding_window = c.window,
                                     .sinks = c.sinks ? p[0] : kNoParam,
                                     .offsets = c.offsets});
                 }};
  if (c.sinks) op_case.params = {{c.dims.heads}};
  HostAllocator allocator;
  const OpRun want = RunOp(op_case, DType::kF64, 1, allocator);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    // Highway truncates to f16 where the machine has no conversion (SSE2).
    const double tolerance = dtype == DType::kF32 ? 2e-5 : dtype == DType::kF16 ? 4e-3 : 2e-2;
    const OpRun one = RunOp(op_case, dtype, 1, allocator);
    const OpRun two = RunOp(op_case, dtype, 2, allocator);
    EXPECT_LE(RelativeError(one.output, want.output), tolerance) << Name(dtype);
    EXPECT_TRUE(SameBits(one.output, two.output)) << Name(dtype);
    for (int i = 0; i < 3; ++i) {
      EXPECT_LE(RelativeError(one.input_grads[i], want.input_grads[i]), tolerance)
          << Name(dtype) << " gradient " << i;
      EXPECT_TRUE(SameBits(one.input_grads[i], two.input_grads[i])) << Name(dtype) << ' ' << i;
    }
    if (!c.sinks) continue;
    EXPECT_LE(RelativeError(one.param_grads[0], want.param_grads[0]), tolerance) << Name(dtype);
    EXPECT_TRUE(SameBits(one.param_grads[0], two.param_grads[0])) << Name(dtype);
  }
}

TEST(Attention, LongSequencesAgreeWithTheReference) {
  CheckLong({{0, 200}, {2, 2, 64, 64}});
  CheckLong({{0, 65, 66, 194, 257}, {6, 2, 80, 96}});
  CheckLong({{0, 64, 200}, {2, 1, 192, 128}});
  CheckLong({{0, 150, 300}, {8, 1, 64, 64}, 70, true});
  CheckLong({{0, 130}, {5, 5, 40, 24}, 1});
}

TEST(Attention, LargeScoresStayFinite) { CheckLong({{0, 140}, {2, 1, 32, 32}}, 6.0); }

bool SameRows(const Tensor& whole, int64_t begin, const Tensor& part) {
  return SameBits(whole.Narrow(begin, part.dim(0)), part);
}

TEST(AttentionBits, DoNotDependOnPagingOrBlockSize) {
  ForEachBatch([](const Case&, Batch& b) {
    const Tensor whole = b.Whole();
    for (int block_size : {16, 32, 48, 64, 128}) {
      Paged paged(b.ctx, b.k, b.v, b.offsets, block_size);
      EXPECT_TRUE(SameBits(whole, PagedAttention(b.ctx, b.q, paged.view, b.args))) << block_size;
    }
  });
}

TEST(AttentionBits, DoNotDependOnChunksOrNeighbours) {
  ForEachBatch([](const Case&, Batch& b) {
    const Tensor whole = b.Whole();
    Paged paged(b.ctx, b.k, b.v, b.offsets, 32);
    const int64_t last = paged.view.sequences() - 1, begin = b.offsets[last];
    const int32_t length = paged.lengths[last];
    for (int32_t chunk : {1, 7, 64, 100}) {
      if (chunk == 1 && b.q.dtype() == DType::kF64) continue;  // slow
      for (int32_t done = 0; done < length; done += chunk) {
        const int32_t n = std::min(chunk, length - done), context = done + n;
        KvView view = paged.view;
        view.block_tables = view.block_tables.subspan(last * view.table_stride);
        view.context_lengths = std::span(&context, 1);
        const std::vector<int32_t> offsets = {0, n};
        AttentionArgs args = b.args;
        args.offsets = offsets;
        const Tensor part = PagedAttention(b.ctx, b.q.Narrow(begin + done, n), view, args);
        ASSERT_TRUE(SameRows(whole, begin + done, part)) << "chunk " << chunk << " at " << done;
      }
    }
  });
}

TEST(AttentionBits, DoNotDependOnThreadsOrWorkers) {
  ForEachBatch([](const Case&, Batch& b) {
    const Tensor whole = b.Whole();
    Paged paged(b.ctx, b.k, b.v, b.offsets, 64);
    for (int threads : {1, 2, 3}) {
      for (int workers = 1; workers <= 16; workers += workers < 4 ? 1 : 3) {
        b.ctx.threads = threads;
        b.args.workers = workers;
        EXPECT_TRUE(SameBits(whole, PagedAttention(b.ctx, b.q, paged.view, b.args)))
            << threads << " threads, " << workers << " workers";
      }
    }
  });
}

// The bf16 kernels of lesser machines.
class AttentionBf16 : public ::testing::TestWithParam<Bf16Kernel> {};

TEST_P(AttentionBf16, Agrees) {
  Batch b({{0, 40, 170}, {4, 2, 80, 48}, 90}, DType::kBF16);
  Paged paged(b.ctx, b.k, b.v, b.offsets, 64);
  const Tensor want = b.Whole(), lse = b.ctx.Empty({170, 4}, DType::kF32);
  AttentionForwardArgs forward{.q = b.q,
                               .kv = paged.view,
                               .scale = b.args.scale,
                               .window = 90,
                               .offsets = b.offsets,
                               .out = b.ctx.Empty(want.shape(), DType::kBF16),
                               .kernel = GetParam(),
                               .lse = lse};
  AttentionForwardCpu(b.ctx, forward);
  EXPECT_LE(RelativeError(forward.out, want), 1e-2);
  AttentionGradArgs grad{.q = b.q,
                         .k = b.k,
                         .v = b.v,
                         .out = want,
                         .lse = lse,
                         .dout = Normal(b.ctx, want.shape(), DType::kBF16, 3),
                         .scale = b.args.scale,
                         .window = 90,
                         .offsets = b.offsets,
                         .query_offsets = b.offsets,
                         .dq = b.ctx.Empty(b.q.shape(), DType::kBF16),
                         .dk = b.ctx.Empty(b.k.shape(), DType::kBF16),
                         .dv = b.ctx.Empty(b.v.shape(), DType::kBF16)};
  AttentionGradCpu(b.ctx, grad);
  AttentionGradArgs plain = grad;
  plain.kernel = GetParam();
  plain.dq = b.ctx.Empty(b.q.shape(), DType::kBF16);
  plain.dk = b.ctx.Empty(b.k.shape(), DType::kBF16);
  plain.dv = b.ctx.Empty(b.v.shape(), DType::kBF16);
  AttentionGradCpu(b.ctx, plain);
  EXPECT_LE(RelativeError(grad.dq, plain.dq), 1e-2);
  EXPECT_LE(RelativeError(grad.dk, plain.dk), 1e-2);
  EXPECT_LE(RelativeError(grad.dv, plain.dv), 1e-2);
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionBf16, ::testing::ValuesIn(MachineBf16Kernels()));

// After an eviction a slot's position is written down, per KV head; -1 is an empty slot.
TEST(Attention, ExplicitPositionsDecideWhatIsSeen) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    Batch b({{0, 100}, {4, 2, 32, 32}, 30, true}, dtype);
    Paged paged(b.ctx, b.k, b.v, b.offsets, 32);
    std::vector<int32_t> identity(paged.view.table_stride * 2 * 32, -1), queries(100);
    auto at = [&](int64_t head, int64_t slot) -> int32_t& {
      return identity[(paged.tables[slot / 32] * 2 + head) * 32 + slot % 32];
    };
    for (int32_t i = 0; i < 100; ++i) {
      queries[i] = i;
      at(0, i) = at(1, i) = i;
    }
    paged.view.positions = identity.data();
    EXPECT_TRUE(SameBits(b.Whole(), PagedAttention(b.ctx, b.q, paged.view, b.args, queries)));

    // Head 1 loses slots 3 and 70 and keeps position 20's key as if it had been the 21st.
    at(1, 3) = at(1, 70) = -1;
    at(1, 20) = 21;
    Tensor got = PagedAttention(b.ctx, b.q, paged.view, b.args, queries);
    Batch wide({{0, 100}, {4, 2, 32, 32}, 30, true}, DType::kF64);
    auto copy = [](const Tensor& from, const Tensor& to) {
      VisitFloat(from.dtype(), [&](auto t) {
        for (int64_t i = 0; i < from.numel(); ++i) {
          to.data<double>()[i] = static_cast<double>(from.data<decltype(t)>()[i]);
        }
      });
    };
    copy(b.q, wide.q);
    copy(b.k, wide.k);
    copy(b.v, wide.v);
    copy(b.store.Acquire(b.args.sinks, Lease::kForward),
         wide.store.Acquire(wide.args.sinks, Lease::kForward));
    Paged reference(wide.ctx, wide.k, wide.v, wide.offsets, 32);
    reference.view.positions = identity.data();
    Tensor want = PagedAttention(wide.ctx, wide.q, reference.view, wide.args, queries);
    EXPECT_LE(RelativeError(got, want), dtype == DType::kBF16 ? 2e-2 : 2e-5);
    EXPECT_GT(RelativeError(b.Whole(), want), 0.01);
  }
}

TEST(Attention, ARowWithoutKeysIsZero) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    Batch b({{0, 2}, {2, 1, 32, 16}}, dtype);
    Paged paged(b.ctx, b.k, b.v, b.offsets, 16);
    const std::vector<int32_t> positions(16 * paged.tables.size(), -1), queries = {0, 1};
    paged.view.positions = positions.data();
    Tensor out = PagedAttention(b.ctx, b.q, paged.view, b.args, queries);
    EXPECT_EQ(RelativeError(out, b.ctx.Zeros(out.shape(), dtype)), 0.0);
  }
}

TEST(Attention, NotANumberIsNotHidden) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Batch b({{0, 70}, {2, 1, 32, 32}}, dtype);
    VisitFloat(dtype, [&](auto t) {
      using T = decltype(t);
      b.k.data<T>()[40 * 32 + 5] = static_cast<T>(NAN);
      Tensor out = b.Whole();
      const T* rows = out.data<T>();
      EXPECT_FALSE(std::isnan(static_cast<float>(rows[39 * 64])));
      EXPECT_TRUE(std::isnan(static_cast<float>(rows[40 * 64])));
      EXPECT_TRUE(std::isnan(static_cast<float>(rows[69 * 64])));
    });
  }
}

}  // namespace
}  // namespace cadre::ops
