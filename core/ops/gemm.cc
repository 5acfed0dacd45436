#include "core/ops/gemm.h"

#include <algorithm>

#include "core/ops/cuda_tensor.h"
#include "core/ops/gemm_cuda.h"
#include "core/ops/gemm_ref.h"
#include "core/ops/kernel.h"
#include "core/parallel_for.h"

namespace cadre {

const ops::Panels& PackedWeights::Get(Context& ctx, ParamId id, int64_t expert, Direction direction,
                                      const Tensor& weight) {
  Entry& entry = entries_[{id, expert, direction}];
  if (entry.version != ctx.parameters->version()) {
    ops::PackPanels(ctx, weight, direction == Direction::kForward, entry.panels);
    entry.version = ctx.parameters->version();
  }
  return entry.panels;
}

size_t PackedWeights::bytes() const {
  size_t total = 0;
  for (const auto& [key, entry] : entries_) total += entry.panels.data.bytes();
  return total;
}

namespace ops {
namespace {

// Tokens of one piece of a weight gradient's sum: a block of one operand fits the second-level
// cache, all of the other the third.
constexpr int64_t kSumChunk = 2048;

void CheckShapes(const GemmArgs& args) {
  const int64_t m = args.a.dim(args.transpose_a ? 1 : 0), k = args.a.dim(args.transpose_a ? 0 : 1);
  const int64_t n = args.b.dim(args.transpose_b ? 0 : 1);
  CADRE_CHECK(args.b.dim(args.transpose_b ? 1 : 0) == k && args.c.shape() == Shape({m, n}),
              "gemm of {} and {} into {}", args.a.shape().ToString(), args.b.shape().ToString(),
              args.c.shape().ToString());
  CADRE_CHECK(!args.transpose_a || (!args.transpose_b && args.accumulate),
              "a sum over tokens adds to its output");
}

// c += a^T b over tokens, piece after piece.
void SumOverTokens(Context& ctx, const GemmArgs& args) {
  const int64_t tokens = args.a.dim(0);
  Panels panels;
  for (int64_t begin = 0; begin < tokens; begin += kSumChunk) {
    const int64_t rows = std::min(kSumChunk, tokens - begin);
    Tensor left = args.a.Narrow(begin, rows);
    PackPanels(ctx, args.b.Narrow(begin, rows), false, panels);
    PanelGemm(ctx,
              {.a = {left.raw(), left.dim(1), true}, .b = panels, .c = args.c, .accumulate = true});
  }
}

}  // namespace

void Gemm(Context& ctx, const GemmArgs& args) {
  CheckShapes(args);
  if (args.c.numel() == 0) return;
  switch (KernelFor(args.a)) {
    case Kernel::kReference:
      return GemmReference(ctx, args);
    case Kernel::kCuda:
      return GemmCuda({.dtype = CudaTypeOf(args.a),
                       .out_dtype = CudaTypeOf(args.c),
                       .a = args.a.raw(),
                       .b = args.b.raw(),
                       .bias = args.bias.defined() ? args.bias.raw() : nullptr,
                       .c = args.c.raw(),
                       .m = args.c.dim(0),
                       .n = args.c.dim(1),
                       .k = args.a.dim(args.transpose_a ? 0 : 1),
                       .transpose_a = args.transpose_a,
                       .transpose_b = args.transpose_b,
                       .accumulate = args.accumulate,
                       .stream = ctx.stream});
    case Kernel::kCpu:
      break;
  }
  if (args.transpose_a) return SumOverTokens(ctx, args);
  Panels panels;
  PackPanels(ctx, args.b, args.transpose_b, panels);
  PanelGemm(ctx, {.a = {args.a.raw(), args.a.dim(0)},
                  .b = panels,
                  .c = args.c,
                  .accumulate = args.accumulate,
                  .bias = args.bias});
}

void WeightGemm(Context& ctx, const WeightGemmArgs& args) {
  const bool forward = args.direction == PackedWeights::Direction::kForward;
  if (ctx.packed == nullptr || KernelFor(args.a) != Kernel::kCpu) {
    return Gemm(
        ctx,
        {.a = args.a, .b = args.weight, .c = args.c, .transpose_b = forward, .bias = args.bias});
  }
  if (args.c.numel() == 0) return;
  const Panels& panels = ctx.packed->Get(ctx, args.param, args.expert, args.direction, args.weight);
  PanelGemm(ctx, {.a = {args.a.raw(), args.a.dim(0)}, .b = panels, .c = args.c, .bias = args.bias});
}

void AddColumnSums(Context& ctx, const Tensor& x, const Tensor& sums) {
  const int64_t rows = x.dim(0), columns = x.dim(1);
  // Threads split columns, so every sum runs over all rows in order.
  ParallelFor(ctx, columns, 256, [&](int64_t begin, int64_t end) {
    VisitFloat(x.dtype(), [&](auto element) {
      using T = decltype(element);
      using S = std::conditional_t<std::is_same_v<T, double>, double, float>;
      const T* data = x.data<T>();
      S* out = sums.data<S>();
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = begin; c < end; ++c) out[c] += static_cast<S>(data[r * columns + c]);
      }
    });
  });
}

}  // namespace ops
}  // namespace cadre
