#include <cmath>

#include "core/ops/layer_norm.h"

namespace cadre::ops {

void LayerNormForwardReference(Context&, const LayerNormForwardArgs& args) {
  const int64_t rows = args.x.dim(0), d = args.x.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    const double* x = args.x.data<double>() + r * d;
    double* y = args.y.data<double>() + r * d;
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < d; ++i) mean += x[i] / static_cast<double>(d);
    for (int64_t i = 0; i < d; ++i) {
      variance += (x[i] - mean) * (x[i] - mean) / static_cast<double>(d);
    }
    const double rstd = 1.0 / std::sqrt(variance + args.eps);
    args.mean.data<double>()[r] = mean;
    args.rstd.data<double>()[r] = rstd;
    for (int64_t i = 0; i < d; ++i) {
      y[i] = (x[i] - mean) * rstd * args.weight.data<double>()[i];
      if (args.bias.defined()) y[i] += args.bias.data<double>()[i];
    }
  }
}

void LayerNormGradReference(Context&, const LayerNormGradArgs& args) {
  const int64_t rows = args.x.dim(0), d = args.x.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    const double *x = args.x.data<double>() + r * d, *dy = args.dy.data<double>() + r * d;
    const double mean = args.mean.data<double>()[r], rstd = args.rstd.data<double>()[r];
    for (int64_t i = 0; i < d; ++i) {
      if (args.dw.defined()) args.dw.data<double>()[i] += dy[i] * (x[i] - mean) * rstd;
      if (args.db.defined()) args.db.data<double>()[i] += dy[i];
    }
    if (!args.dx.defined()) continue;
    const double* w = args.weight.data<double>();
    double* dx = args.dx.data<double>() + r * d;
    double sum = 0, dot = 0;
    for (int64_t i = 0; i < d; ++i) {
      sum += dy[i] * w[i] / static_cast<double>(d);
      dot += dy[i] * w[i] * (x[i] - mean) * rstd / static_cast<double>(d);
    }
    for (int64_t i = 0; i < d; ++i) {
      dx[i] = rstd * (dy[i] * w[i] - sum - (x[i] - mean) * rstd * dot);
    }
  }
}

}  // namespace cadre::ops
