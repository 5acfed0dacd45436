#include "training/gemm_peak.h"

#include <algorithm>
#include <chrono>

#include "core/ops/gemm.h"

namespace cadre {
namespace {

double Flops(int64_t size) {
  return 2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
}

// The best of a few products of size cubed.
double SecondsOfProduct(Context& ctx, DType compute, int64_t size) {
  constexpr int kRepeats = 6;
  ParameterStore store;
  const ParamId id = store.Add({.name = "peak", .shape = {size, size}});
  store.Allocate(*ctx.allocator, compute, {});
  PackedWeights packed;
  Context timing = ctx;
  timing.parameters = &store;
  timing.packed = &packed;
  Tensor x = ctx.Zeros({size, size}, compute), y = ctx.Empty({size, size}, compute);
  double best = 1e30;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ops::WeightGemm(timing,
                    {.param = id, .weight = store.Acquire(id, Lease::kForward), .a = x, .c = y});
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

double MeasureGemmPeak(Context& ctx, DType compute) {
  constexpr int64_t kSmall = 128, kLarge = 1024;
  constexpr double kLongest = 0.5;  // seconds for one large product
  const double small = Flops(kSmall) / SecondsOfProduct(ctx, compute, kSmall);
  // What is so slow (the reference path, a build with a sanitizer) is no faster when large.
  if (compute == DType::kF64 || Flops(kLarge) / small > kLongest) return small;
  return Flops(kLarge) / SecondsOfProduct(ctx, compute, kLarge);
}

}  // namespace cadre
