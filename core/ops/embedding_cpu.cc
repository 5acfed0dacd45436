#include "core/ops/compute_types.h"
#include "core/ops/embedding.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/embedding_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {
namespace {

template <typename T>
void AddRow(const T* x, float* into, size_t count) {
  ForLanes(
      count, [&](size_t i) HWY_ATTR { Store(hn::Add(Load(into + i), Load(x + i)), into + i); },
      [&](size_t i, size_t n)
          HWY_ATTR { StoreN(hn::Add(LoadN(into + i, n), LoadN(x + i, n)), into + i, n); });
}

// Threads split columns, so every element of dw is summed over the tokens in one order.
void GradAny(Context& ctx, const EmbeddingGradArgs& args) {
  const int64_t d = args.dw.dim(1), tokens = args.ids.numel();
  const int32_t* ids = args.ids.data<int32_t>();
  VisitComputeType("embedding", args.dy.dtype(), [&](auto t) {
    using T = decltype(t);
    ParallelFor(ctx, (d + 63) / 64, 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * 64, last = std::min(end * 64, d);
      for (int64_t i = 0; i < tokens; ++i) {
        if (ids[i] < 0) continue;
        AddRow<T>(args.dy.data<T>() + i * d + first, args.dw.data<float>() + ids[i] * d + first,
                  last - first);
      }
    });
  });
}

}  // namespace
}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(GradAny);

void EmbeddingGradCpu(Context& ctx, const EmbeddingGradArgs& args) {
  HWY_DYNAMIC_DISPATCH(GradAny)(ctx, args);
}

}  // namespace cadre::ops
#endif
