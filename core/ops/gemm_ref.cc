#include "core/ops/gemm_ref.h"

#include "core/parallel_for.h"

namespace cadre::ops {

void GemmReference(Context& ctx, const GemmArgs& args) {
  const int64_t m = args.c.dim(0), n = args.c.dim(1), k = args.a.dim(args.transpose_a ? 0 : 1);
  const double *a = args.a.data<double>(), *b = args.b.data<double>();
  const double* bias = args.bias.defined() ? args.bias.data<double>() : nullptr;
  double* c = args.c.data<double>();
  ParallelFor(ctx, m, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = bias == nullptr ? 0.0 : bias[j];
        if (args.accumulate) sum += c[i * n + j];
        for (int64_t p = 0; p < k; ++p) {
          sum += a[args.transpose_a ? p * m + i : i * k + p] *
                 b[args.transpose_b ? j * k + p : p * n + j];
        }
        c[i * n + j] = sum;
      }
    }
  });
}

}  // namespace cadre::ops
