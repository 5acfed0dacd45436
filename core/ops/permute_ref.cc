#include "core/ops/permute.h"

namespace cadre::ops {

void CombineReference(Context&, const CombineArgs& args) {
  const int64_t tokens = args.row_of.dim(0), k = args.row_of.dim(1), d = args.rows.dim(1);
  for (int64_t t = 0; t < tokens; ++t) {
    double* y = args.y.data<double>() + t * d;
    for (int64_t i = 0; i < d; ++i) y[i] = 0;
    for (int64_t j = t * k; j < (t + 1) * k; ++j) {
      if (args.row_of.data<int32_t>()[j] == kDropped) continue;
      const double weight = args.weights.defined() ? args.weights.data<double>()[j] : 1.0;
      const double* row = args.rows.data<double>() + args.row_of.data<int32_t>()[j] * d;
      for (int64_t i = 0; i < d; ++i) y[i] += weight * row[i];
    }
  }
}

void CombineGradReference(Context&, const CombineGradArgs& args) {
  const int64_t tokens = args.row_of.dim(0), k = args.row_of.dim(1), d = args.rows.dim(1);
  for (int64_t t = 0; t < tokens; ++t) {
    const double* dy = args.dy.data<double>() + t * d;
    for (int64_t j = t * k; j < (t + 1) * k; ++j) {
      const int64_t row = args.row_of.data<int32_t>()[j] * d;
      double dot = 0;
      if (row < 0) {
        args.dweights.data<double>()[j] = 0;
        continue;
      }
      for (int64_t i = 0; i < d; ++i) {
        args.drows.data<double>()[row + i] = args.weights.data<double>()[j] * dy[i];
        dot += dy[i] * args.rows.data<double>()[row + i];
      }
      args.dweights.data<double>()[j] = dot;
    }
  }
}

}  // namespace cadre::ops
