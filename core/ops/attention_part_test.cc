// Attention for some of the queries, and to some of the keys.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/ops/attention_test_util.h"
#include "core/ops/elementwise.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

using testing_attention::Batch;
using testing_attention::Case;
using testing_attention::ForEachBatch;
using testing_attention::Normal;

TEST(Attention, SomeOfTheQueriesAgreeWithFiniteDifferences) {
  const std::vector<int32_t> offsets = {0, 3, 9, 9, 14}, rows = {1, 2, 5, 8, 13};
  for (int window : {0, 3}) {
    CheckOp({.inputs = {{5, 4, 8}, {14, 2, 8}, {14, 2, 16}},
             .params = {{4}},
             .op = [&](Context& ctx, std::span<const Var> x, std::span<const ParamId> p) {
               return Attention(ctx, x[0], x[1], x[2],
                                {.scale = 0.25f,
                                 .sliding_window = window,
                                 .sinks = p[0],
                                 .offsets = offsets,
                                 .query_rows = rows});
             }});
  }
}

Tensor Rows(Context& ctx, const Tensor& x, std::span<const int32_t> rows) {
  const int64_t count = static_cast<int64_t>(rows.size());
  Tensor y = ctx.Empty({count, x.dim(1), x.dim(2)}, x.dtype());
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(y.Narrow(i, 1).raw(), x.Narrow(rows[i], 1).raw(), y.Narrow(i, 1).bytes());
  }
  return y;
}

struct Gradients {
  Tensor out, dq, dk, dv;
};

// Of the queries of these tokens.
Gradients RunRows(Batch& b, std::span<const int32_t> rows, const Tensor& dout) {
  Tape tape(&Accumulate);
  Context ctx = b.ctx;
  ctx.tape = &tape;
  const auto input = [&](const Tensor& value) {
    const Var x{value, tape.NewSlot()};
    tape.KeepGrad(x.slot);
    return x;
  };
  const Var q = input(Rows(ctx, b.q, rows)), k = input(b.k), v = input(b.v);
  AttentionArgs args = b.args;
  args.query_rows = rows;
  const Var out = Attention(ctx, q, k, v, args);
  tape.Seed(out.slot, Rows(ctx, dout, rows));
  tape.Backward(ctx);
  return {out.value, tape.Grad(ctx, q.slot), tape.Grad(ctx, k.slot), tape.Grad(ctx, v.slot)};
}

void AddTo(const Tensor& sum, const Tensor& x) {
  VisitFloat(x.dtype(), [&](auto t) {
    for (int64_t i = 0; i < x.numel(); ++i) {
      sum.data<double>()[i] += static_cast<double>(x.data<decltype(t)>()[i]);
    }
  });
}

// What queries get is what they get among all; what they add to the gradients of keys and values
// adds up.
TEST(AttentionBits, DoNotDependOnOtherQueries) {
  ForEachBatch([](const Case&, Batch& b) {
    std::vector<int32_t> all, parts[3];
    for (int32_t t = 0; t < b.offsets.back(); ++t) {
      const int chunk = t / 19 % 6;
      all.push_back(t);
      parts[std::min(chunk, 5 - chunk)].push_back(t);
    }
    const Tensor dout = Normal(b.ctx, b.Whole().shape(), b.q.dtype(), 3);
    const Gradients whole = RunRows(b, all, dout);
    EXPECT_TRUE(SameBits(b.Whole(), whole.out));
    const Tensor dk = b.ctx.Zeros(whole.dk.shape(), DType::kF64);
    const Tensor dv = b.ctx.Zeros(whole.dv.shape(), DType::kF64);
    const double tolerance = SizeOf(b.q.dtype()) == 2 ? 2e-2 : 1e-5;
    for (const auto& rows : parts) {
      const Gradients got = RunRows(b, rows, dout);
      EXPECT_TRUE(SameBits(Rows(b.ctx, whole.out, rows), got.out));
      EXPECT_TRUE(SameBits(Rows(b.ctx, whole.dq, rows), got.dq));
      AddTo(dk, got.dk);
      AddTo(dv, got.dv);
    }
    EXPECT_LE(RelativeError(dk, whole.dk), tolerance);
    EXPECT_LE(RelativeError(dv, whole.dv), tolerance);
  });
}

// Keys in three parts, as AttendToPart takes them.
struct KeyParts {
  std::vector<int32_t> all, positions;  // of all tokens
  std::vector<std::vector<int32_t>> rows, offsets, at;
  std::vector<AttentionPartArgs> args;

  KeyParts(const Case& c, Batch& b) {
    rows.resize(3);
    offsets.resize(3, {0});
    at.resize(3);
    for (size_t s = 0; s + 1 < c.offsets.size(); ++s) {
      for (int32_t t = c.offsets[s]; t < c.offsets[s + 1]; ++t) {
        all.push_back(t);
        positions.push_back(t - c.offsets[s]);
        rows[t / 19 % 3].push_back(t);
        at[t / 19 % 3].push_back(t - c.offsets[s]);
      }
      for (int p = 0; p < 3; ++p) offsets[p].push_back(static_cast<int32_t>(rows[p].size()));
    }
    for (int p = 0; p < 3; ++p) {
      args.push_back({b.q, Rows(b.ctx, b.k, rows[p]), Rows(b.ctx, b.v, rows[p]), b.args.scale,
                      c.window, offsets[p], b.offsets, at[p], positions});
    }
  }
};

// Parts put together by their log-sum-exps, in f64.
struct Joined {
  Tensor out, lse;

  Joined(Batch& b, const KeyParts& parts) {
    const int64_t rows = b.q.dim(0) * b.q.dim(1), dv = b.v.dim(2);
    const bool reference = b.q.dtype() == DType::kF64;
    out = b.ctx.Zeros({b.q.dim(0), b.q.dim(1), dv}, DType::kF64);
    lse = b.ctx.Empty({b.q.dim(0), b.q.dim(1)}, reference ? DType::kF64 : DType::kF32);
    std::vector<double> sums(static_cast<size_t>(rows), 0.0);
    for (const AttentionPartArgs& args : parts.args) {
      const AttentionPart part = AttendToPart(b.ctx, args);
      const Tensor wide = b.ctx.Zeros(part.out.shape(), DType::kF64);
      AddTo(wide, part.out);
      for (int64_t r = 0; r < rows; ++r) {
        const double power =
            reference ? part.lse.data<double>()[r] : std::log(2.0) * part.lse.data<float>()[r];
        if (std::isinf(power)) continue;  // sees none of these
        sums[r] += std::exp(power);
        for (int64_t d = r * dv; d < (r + 1) * dv; ++d) {
          out.data<double>()[d] += std::exp(power) * wide.data<double>()[d];
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t d = r * dv; d < (r + 1) * dv; ++d) out.data<double>()[d] /= sums[r];
      if (reference) {
        lse.data<double>()[r] = std::log(sums[r]);
      } else {
        lse.data<float>()[r] = static_cast<float>(std::log2(sums[r]));
      }
    }
  }
};

AttentionGradArgs PartGrad(Batch& b, const AttentionPartArgs& a, const Tensor& out,
                           const Tensor& lse, const Tensor& dout) {
  const AttentionGradArgs grad{.q = a.q,
                               .k = a.k,
                               .v = a.v,
                               .out = out,
                               .lse = lse,
                               .dout = dout,
                               .scale = a.scale,
                               .window = a.window,
                               .offsets = a.offsets,
                               .query_offsets = a.query_offsets,
                               .query_positions = a.query_positions,
                               .key_positions = a.key_positions,
                               .dq = b.ctx.Empty(a.q.shape(), a.q.dtype()),
                               .dk = b.ctx.Empty(a.k.shape(), a.k.dtype()),
                               .dv = b.ctx.Empty(a.v.shape(), a.v.dtype())};
  AttentionPartGrad(b.ctx, grad);
  return grad;
}

// The gradients of the parts add up to the whole's, too.
TEST(Attention, PartsOfTheKeysMakeTheWhole) {
  ForEachBatch([](const Case& c, Batch& b) {
    if (c.sinks) return;
    const KeyParts parts(c, b);
    const Tensor dout = Normal(b.ctx, b.Whole().shape(), b.q.dtype(), 3);
    const Gradients whole = RunRows(b, parts.all, dout);
    const Joined joined(b, parts);
    const double tolerance = SizeOf(b.q.dtype()) == 2 ? 2e-2 : 1e-5;
    EXPECT_LE(RelativeError(joined.out, whole.out), tolerance);
    const Tensor dq = b.ctx.Zeros(whole.dq.shape(), DType::kF64);
    for (int p = 0; p < 3; ++p) {
      const AttentionGradArgs grad = PartGrad(b, parts.args[p], whole.out, joined.lse, dout);
      AddTo(dq, grad.dq);
      EXPECT_LE(RelativeError(grad.dk, Rows(b.ctx, whole.dk, parts.rows[p])), tolerance);
      EXPECT_LE(RelativeError(grad.dv, Rows(b.ctx, whole.dv, parts.rows[p])), tolerance);
    }
    EXPECT_LE(RelativeError(dq, whole.dq), tolerance);
  });
}

}  // namespace
}  // namespace cadre::ops
