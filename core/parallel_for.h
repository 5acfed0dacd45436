// ParallelFor cuts [0, n) into contiguous ranges, one per thread of the context, and calls
// body(begin, end) on each. Results must not depend on the cut: each index writes its own output,
// in an order of arithmetic that the index alone decides.
#pragma once

#include <algorithm>
#include <cstdint>

#include <omp.h>

#include "core/context.h"

namespace cadre {

// grain: the fewest indices worth a thread of their own.
template <typename Body>
void ParallelFor(const Context& ctx, int64_t n, int64_t grain, Body&& body) {
  int64_t threads =
      std::min<int64_t>(ctx.threads, std::max<int64_t>(1, n / std::max<int64_t>(1, grain)));
  if (threads <= 1) {
    if (n > 0) body(int64_t{0}, n);
    return;
  }
#pragma omp parallel num_threads(static_cast <int>(threads))
  {
    int64_t count = omp_get_num_threads(), self = omp_get_thread_num();
    int64_t begin = n * self / count, end = n * (self + 1) / count;
    if (begin < end) body(begin, end);
  }
}

// Units of uneven cost: threads take the next unit as they become free; body(unit).
template <typename Body>
void ParallelUnits(const Context& ctx, int64_t n, Body&& body) {
  if (ctx.threads <= 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(ctx.threads)
  for (int64_t i = 0; i < n; ++i) body(i);
}

}  // namespace cadre
