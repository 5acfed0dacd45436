// Attention over quantized keys and values: what is stored decides, and nothing else.
#include <gtest/gtest.h>

#include <cmath>

#include "core/ops/attention_test_util.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

using testing_attention::Batch;
using testing_attention::BitCases;
using testing_attention::Case;
using testing_attention::Paged;
using testing_attention::Wide;

constexpr KvQuantization kKinds[] = {KvQuantization::kInt8, KvQuantization::kInt4};

void ForEach(std::span<const DType> dtypes,
             const std::function<void(const Case&, Batch&, KvQuantization)>& check) {
  for (KvQuantization kind : kKinds) {
    for (const Case& c : BitCases()) {
      for (DType dtype : dtypes) {
        SCOPED_TRACE(std::string(Name(dtype)) + " dk " + std::to_string(c.dims.dk) +
                     (kind == KvQuantization::kInt8 ? " int8" : " int4"));
        Batch batch(c, dtype);
        batch.args.quantization = kind;
        check(c, batch, kind);
      }
    }
  }
}

constexpr DType kFast[] = {DType::kBF16, DType::kF32};
constexpr DType kAll[] = {DType::kBF16, DType::kF32, DType::kF16, DType::kF64};

// The reference over the very bytes that the kernels read.
Tensor Reference(const Case& c, Batch& b, const KvView& kv) {
  const Tensor q = Wide(b.ctx, b.q);
  AttentionForwardArgs args{.q = q,
                            .kv = kv,
                            .scale = b.args.scale,
                            .window = c.window,
                            .offsets = b.offsets,
                            .out = b.ctx.Empty({q.dim(0), q.dim(1), b.v.dim(2)}, DType::kF64)};
  if (c.sinks) {
    args.sinks = Wide(b.ctx, b.store.Acquire(b.args.sinks, Lease::kForward));
    b.store.Release(b.args.sinks, Lease::kForward);
  }
  AttentionForwardReference(b.ctx, args);
  return args.out;
}

TEST(QuantizedAttention, EveryKernelAgreesWithTheReference) {
  ForEach(kFast, [](const Case& c, Batch& b, KvQuantization kind) {
    Paged paged(b.ctx, b.k, b.v, b.offsets, 32, kind);
    const Tensor want = Reference(c, b, paged.view);
    const bool rounds = b.q.dtype() == DType::kBF16;
    AttentionForwardArgs args{.q = b.q,
                              .kv = paged.view,
                              .scale = b.args.scale,
                              .window = c.window,
                              .offsets = b.offsets,
                              .out = b.ctx.Empty(want.shape(), b.q.dtype())};
    if (c.sinks) args.sinks = b.store.Acquire(b.args.sinks, Lease::kForward);
    for (Bf16Kernel kernel : MachineBf16Kernels()) {
      args.kernel = kernel;
      AttentionForwardCpu(b.ctx, args);
      EXPECT_LE(RelativeError(args.out, want), rounds ? 5e-3 : 2e-6);
    }
    if (c.sinks) b.store.Release(b.args.sinks, Lease::kForward);
  });
}

// Scores here have a deviation of 1.6 to 2.8: int4's error is seen.
TEST(QuantizedAttention, IsNearWhatIsNotQuantized) {
  ForEach(kAll, [](const Case&, Batch& b, KvQuantization kind) {
    const Tensor got = b.Whole();
    b.args.quantization = KvQuantization::kNone;
    const double error = RelativeError(got, b.Whole());
    const bool wide = kind == KvQuantization::kInt8;
    EXPECT_LE(error, wide ? 0.03 : 0.25);
    EXPECT_GE(error, wide ? 1e-3 : 0.02);
  });
}

TEST(QuantizedAttention, BitsDoNotDependOnPagingBlockSizeOrWorkers) {
  ForEach(kAll, [](const Case&, Batch& b, KvQuantization kind) {
    const Tensor whole = b.Whole();
    for (int block_size : {16, 48, 64, 128}) {
      Paged paged(b.ctx, b.k, b.v, b.offsets, block_size, kind);
      AttentionArgs args = b.args;
      args.workers = block_size / 16;
      EXPECT_TRUE(SameBits(whole, PagedAttention(b.ctx, b.q, paged.view, args))) << block_size;
    }
  });
}

TEST(QuantizedAttention, BitsDoNotDependOnChunks) {
  ForEach(kFast, [](const Case&, Batch& b, KvQuantization kind) {
    const Tensor whole = b.Whole();
    Paged paged(b.ctx, b.k, b.v, b.offsets, 32, kind);
    const int64_t last = paged.view.sequences() - 1, begin = b.offsets[last];
    for (int32_t chunk : {1, 7, 100}) {
      for (int32_t done = 0; done < paged.lengths[last]; done += chunk) {
        const int32_t n = std::min(chunk, paged.lengths[last] - done), context = done + n;
        KvView view = paged.view;
        view.block_tables = view.block_tables.subspan(last * view.table_stride);
        view.context_lengths = std::span(&context, 1);
        const std::vector<int32_t> offsets = {0, n};
        AttentionArgs args = b.args;
        args.offsets = offsets;
        const Tensor part = PagedAttention(b.ctx, b.q.Narrow(begin + done, n), view, args);
        ASSERT_TRUE(SameBits(whole.Narrow(begin + done, n), part)) << chunk << " at " << done;
      }
    }
  });
}

TEST(QuantizedAttention, NotANumberIsNotHidden) {
  for (KvQuantization kind : kKinds) {
    for (DType dtype : kFast) {
      Batch b({{0, 70}, {2, 1, 32, 32}}, dtype);
      b.args.quantization = kind;
      VisitFloat(dtype, [&](auto t) {
        using T = decltype(t);
        b.k.data<T>()[40 * 32 + 5] = static_cast<T>(INFINITY);
        const Tensor out = b.Whole();
        const T* rows = out.data<T>();
        EXPECT_FALSE(std::isnan(static_cast<float>(rows[39 * 64])));
        EXPECT_TRUE(std::isnan(static_cast<float>(rows[40 * 64])));
        EXPECT_TRUE(std::isnan(static_cast<float>(rows[69 * 64])));
      });
    }
  }
}

}  // namespace
}  // namespace cadre::ops
