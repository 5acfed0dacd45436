#include "parallel/ring_attention.h"

#include <gtest/gtest.h>

#include "core/ops/attention.h"
#include "parallel/test_rig.h"
#include "parallel/zigzag.h"

namespace cadre {
namespace {

constexpr int kTokens = 240;
const std::vector<int32_t> kOffsets = {0, 37, 37, 180, 240};

Tensor Rows(Allocator& memory, const Tensor& x, const std::vector<int32_t>& rows) {
  Tensor y =
      Tensor::Empty(memory, {static_cast<int64_t>(rows.size()), x.dim(1), x.dim(2)}, x.dtype());
  for (int64_t i = 0; i < y.dim(0); ++i) {
    const Tensor row = x.Narrow(rows[static_cast<size_t>(i)], 1);
    std::memcpy(y.Narrow(i, 1).raw(), row.raw(), row.bytes());
  }
  return y;
}

std::shared_ptr<const RingShares> Shares(int ranks) {
  auto shares = std::make_shared<RingShares>();
  for (int r = 0; r < ranks; ++r) {
    const std::vector<int32_t> tokens = ZigzagTokens(std::vector<int32_t>{0, kTokens}, ranks, r);
    std::vector<int32_t> offsets = {0}, positions;
    for (size_t s = 1; s < kOffsets.size(); ++s) {
      for (const int32_t t : tokens) {
        if (t >= kOffsets[s - 1] && t < kOffsets[s]) positions.push_back(t - kOffsets[s - 1]);
      }
      offsets.push_back(static_cast<int32_t>(positions.size()));
    }
    shares->offsets.push_back(offsets);
    shares->positions.push_back(positions);
  }
  return shares;
}

// On two and three ranks what one gets, forward and backward.
void Check(int ranks, DType dtype, int window) {
  RunRigs(ranks, [&](RankRig& rig) {
    const Tensor q = Random(rig.memory, {kTokens, 4, 32}, dtype, 0);
    const Tensor k = Random(rig.memory, {kTokens, 2, 32}, dtype, 1);
    const Tensor v = Random(rig.memory, {kTokens, 2, 48}, dtype, 2);
    const Tensor dout = Random(rig.memory, {kTokens, 4, 48}, dtype, 3);
    const Var x[] = {rig.Input(q), rig.Input(k), rig.Input(v)};
    const Var whole = ops::Attention(
        rig.ctx, x[0], x[1], x[2], {.scale = 0.2f, .sliding_window = window, .offsets = kOffsets});
    rig.tape.Seed(whole.slot, dout);

    const auto rows = ZigzagTokens(std::vector<int32_t>{0, kTokens}, ranks, rig.rank());
    const auto own = [&](const Tensor& t) { return Rows(rig.memory, t, rows); };
    const Var y[] = {rig.Input(own(q)), rig.Input(own(k)), rig.Input(own(v))};
    const Var out = RingAttention(rig.ctx, y[0], y[1], y[2],
                                  {.scale = 0.2f,
                                   .sliding_window = window,
                                   .shares = Shares(ranks),
                                   .group = rig.communicator.get(),
                                   .label = {"ring"}});
    rig.tape.Seed(out.slot, own(dout));
    rig.tape.Backward(rig.ctx);
    ASSERT_TRUE(rig.groups.failure.ok()) << Message(rig.groups.failure);
    EXPECT_LE(Distance(out.value, own(whole.value)), ToleranceOf(dtype));
    for (int i = 0; i < 3; ++i) {
      EXPECT_LE(Distance(rig.GradOf(y[i]), own(rig.GradOf(x[i]))), ToleranceOf(dtype)) << i;
    }
  });
}

TEST(RingAttention, AgreesWithOneRank) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
    Check(2, dtype, 0);
    Check(3, dtype, 50);
  }
}

}  // namespace
}  // namespace cadre
