// Attention over a ragged batch of cached contexts: any number of workers, the same bits.
#include <gtest/gtest.h>

#include <cmath>

#include "core/ops/attention_test_util.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

using testing_attention::Batch;
using testing_attention::Normal;
using testing_attention::Paged;

// One context of 16,384 tokens and seven of 256, 2 KV heads; each sequence has one query.
struct Ragged {
  Batch batch;
  Paged paged;
  std::vector<int32_t> queries = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  Tensor q;

  static std::vector<int32_t> Offsets() {
    std::vector<int32_t> offsets = {0, 16384};
    for (int s = 0; s < 7; ++s) offsets.push_back(offsets.back() + 256);
    return offsets;
  }

  explicit Ragged(DType dtype)
      : batch({Offsets(), {8, 2, 64, 64}}, dtype),
        paged(batch.ctx, batch.k, batch.v, batch.offsets, 64),
        q(Normal(batch.ctx, {8, 8, 64}, dtype, 7)) {}

  AttentionForwardArgs Args() {
    return {.q = q,
            .kv = paged.view,
            .scale = 0.25,
            .offsets = queries,
            .out = batch.ctx.Empty({8, 8, 64}, q.dtype())};
  }
};

TEST(LeanAttention, ARaggedBatchHasTheSameBitsOnAnyWorkers) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Ragged ragged(dtype);
    AttentionForwardArgs args = ragged.Args();
    args.workers = 1;
    AttentionForwardCpu(ragged.batch.ctx, args);
    for (int workers = 0; workers <= 16; ++workers) {
      AttentionForwardArgs more = ragged.Args();
      more.workers = workers;
      AttentionForwardCpu(ragged.batch.ctx, more);
      EXPECT_TRUE(SameBits(args.out, more.out)) << Name(dtype) << ' ' << workers << " workers";
    }
  }
}

TEST(LeanAttention, ARaggedBatchAgreesWithTheReference) {
  Ragged ragged(DType::kF32), wide(DType::kF64);  // the same numbers
  AttentionForwardArgs want = wide.Args(), got = ragged.Args();
  AttentionForwardReference(wide.batch.ctx, want);
  got.workers = 8;
  AttentionForwardCpu(ragged.batch.ctx, got);
  for (int64_t i = 0; i < got.out.numel(); ++i) {
    ASSERT_NEAR(got.out.data<float>()[i], want.out.data<double>()[i], 1e-5) << i;
  }
}

// However little may be kept at a time.
TEST(LeanAttention, LittleRoomChangesNoBit) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Batch b({{0, 700, 1100}, {4, 2, 64, 48}, 0, true}, dtype);
    Paged paged(b.ctx, b.k, b.v, b.offsets, 32);
    const Tensor sinks = b.store.Acquire(b.args.sinks, Lease::kForward);
    const std::vector<int32_t> queries = {0, 20, 21};
    const Tensor q = Normal(b.ctx, {21, 4, 64}, dtype, 7);
    auto run = [&](int workers, int64_t bytes) {
      AttentionForwardArgs args{.q = q,
                                .kv = paged.view,
                                .scale = 0.25,
                                .workers = workers,
                                .offsets = queries,
                                .sinks = sinks,
                                .out = b.ctx.Empty({21, 4, 48}, dtype),
                                .kept_bytes = bytes,
                                .lse = b.ctx.Empty({21, 4}, DType::kF32)};
      AttentionForwardCpu(b.ctx, args);
      return args;
    };
    const AttentionForwardArgs whole = run(1, 0);
    for (int workers : {1, 2, 3, 7}) {
      for (int64_t bytes : {0, 60'000, 1 << 24}) {
        const AttentionForwardArgs part = run(workers, bytes);
        EXPECT_TRUE(SameBits(whole.out, part.out)) << workers << ' ' << bytes;
        EXPECT_TRUE(SameBits(whole.lse, part.lse)) << workers << ' ' << bytes;
      }
    }
    b.store.Release(b.args.sinks, Lease::kForward);
  }
}

}  // namespace
}  // namespace cadre::ops
