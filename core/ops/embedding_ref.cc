#include "core/ops/embedding.h"

namespace cadre::ops {

void EmbeddingGradReference(Context&, const EmbeddingGradArgs& args) {
  const int64_t d = args.dw.dim(1);
  const double* dy = args.dy.data<double>();
  double* dw = args.dw.data<double>();
  for (int64_t t = 0; t < args.ids.numel(); ++t) {
    if (args.ids.data<int32_t>()[t] < 0) continue;
    double* row = dw + args.ids.data<int32_t>()[t] * d;
    for (int64_t i = 0; i < d; ++i) row[i] += dy[t * d + i];
  }
}

}  // namespace cadre::ops
