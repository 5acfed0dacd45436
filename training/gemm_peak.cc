#include "training/gemm_peak.h"

#include <algorithm>
#include <chrono>

#include "core/ops/gemm.h"

namespace cadre {

double MeasureGemmPeak(Context& ctx, DType compute) {
  const int64_t size = compute == DType::kF64 ? 128 : 1024;
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
  return 2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size) /
         best;
}

}  // namespace cadre
