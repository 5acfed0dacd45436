#include "core/ops/dropout.h"

#include "core/ops/kernel.h"
#include "core/parallel_for.h"
#include "core/random.h"

namespace cadre::ops {
namespace {

struct Mask {
  RandomKey key;
  uint64_t salt;
  uint32_t threshold;  // 32-bit draws below it are dropped
  float scale;
};

Mask MaskOf(const Context& ctx, double rate, uint32_t site) {
  return {RandomKey(ctx.seed, "dropout"), (static_cast<uint64_t>(ctx.step) << 32) | site,
          static_cast<uint32_t>(rate * 0x1p32), static_cast<float>(1.0 / (1.0 - rate))};
}

// Four neighbouring columns share one Philox block.
template <typename T>
void MaskRow(const Mask& mask, int64_t token, const T* x, T* y, int64_t d) {
  const int64_t blocks = (d + 3) / 4;
  for (int64_t b = 0; b < blocks; ++b) {
    const PhiloxBlock draw = mask.key.Block(
        static_cast<uint64_t>(token) * static_cast<uint64_t>(blocks) + static_cast<uint64_t>(b),
        mask.salt);
    for (int64_t i = 4 * b; i < std::min(4 * b + 4, d); ++i) {
      const bool keep = draw[static_cast<size_t>(i - 4 * b)] >= mask.threshold;
      if constexpr (std::is_same_v<T, double>) {
        y[i] = keep ? x[i] * static_cast<double>(mask.scale) : 0.0;
      } else {
        y[i] = static_cast<T>(keep ? static_cast<float>(x[i]) * mask.scale : 0.0f);
      }
    }
  }
}

Tensor Masked(Context& ctx, const Mask& mask, const Tensor& tokens, const Tensor& x) {
  if (x.device().kind == DeviceKind::kCuda) NoCudaKernel("dropout");
  Tensor y = ctx.Empty(x.shape(), x.dtype());
  const int64_t d = x.dim(1);
  VisitFloat(x.dtype(), [&](auto t) {
    using T = decltype(t);
    ParallelFor(ctx, x.dim(0), 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        MaskRow(mask, tokens.data<int64_t>()[r], x.data<T>() + r * d, y.data<T>() + r * d, d);
      }
    });
  });
  return y;
}

}  // namespace

Var Dropout(Context& ctx, const Var& x, const DropoutArgs& args) {
  CADRE_CHECK(args.rate >= 0 && args.rate < 1, "dropout rate {}", args.rate);
  if (args.rate == 0 || ctx.tape == nullptr) return x;
  CADRE_CHECK(x.value.shape().rank() == 2 && args.tokens.numel() == x.value.dim(0),
              "dropout of {}, {} tokens", x.value.shape().ToString(), args.tokens.numel());
  const Mask mask = MaskOf(ctx, args.rate, args.site);
  Var y{Masked(ctx, mask, args.tokens, x.value), ctx.tape->NewSlot()};
  SlotId ts = ctx.tape->NewSlot();
  Node node{.name = "dropout",
            .inputs = {x.slot},
            .outputs = {y.slot},
            .saved = {{ts, args.tokens, Pass::kInput}}};
  node.input_grad = [mask, ts, xs = x.slot, ys = y.slot, shape = x.value.shape()](GradContext& g) {
    if (!g.Needs(xs)) return;
    g.AddGrad(xs, Masked(g.ctx(), mask, g.Read(ts), g.OutputGrad(ys).Reshape(shape)));
  };
  ctx.tape->Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
