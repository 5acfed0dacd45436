#include <cmath>

#include "core/ops/rms_norm.h"

namespace cadre::ops {

void RmsNormForwardReference(Context& ctx, const RmsNormForwardArgs& args) {
  const int64_t rows = args.x.dim(0), d = args.x.dim(1);
  const double *x = args.x.data<double>(), *w = args.weight.data<double>();
  double *y = args.y.data<double>(), *rstd = args.rstd.data<double>();
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < d; ++i) sum += x[r * d + i] * x[r * d + i];
    rstd[r] = sum;
  }
  if (args.combine) args.combine(ctx, args.rstd);
  for (int64_t r = 0; r < rows; ++r) {
    rstd[r] = 1.0 / std::sqrt(rstd[r] / static_cast<double>(args.width) + args.eps);
    for (int64_t i = 0; i < d; ++i) y[r * d + i] = x[r * d + i] * rstd[r] * w[i];
  }
}

void RmsNormGradReference(Context& ctx, const RmsNormGradArgs& args) {
  const int64_t rows = args.x.dim(0), d = args.x.dim(1);
  const double *x = args.x.data<double>(), *dy = args.dy.data<double>();
  const double* rstd = args.rstd.data<double>();
  for (int64_t r = 0; r < rows; ++r) {
    const double *xr = x + r * d, *dyr = dy + r * d;
    if (args.dw.defined()) {
      double* dw = args.dw.data<double>();
      for (int64_t i = 0; i < d; ++i) dw[i] += dyr[i] * xr[i] * rstd[r];
    }
  }
  if (!args.dx.defined()) return;
  const double* w = args.weight.data<double>();
  Tensor dots = ctx.Zeros({rows}, DType::kF64);
  double* dot = dots.data<double>();
  for (int64_t i = 0; i < rows * d; ++i) dot[i / d] += dy[i] * w[i % d] * x[i];
  if (args.combine) args.combine(ctx, dots);
  for (int64_t r = 0; r < rows; ++r) {
    const double *xr = x + r * d, *dyr = dy + r * d;
    double* dx = args.dx.data<double>() + r * d;
    double scale = dot[r] * rstd[r] * rstd[r] * rstd[r] / static_cast<double>(args.width);
    for (int64_t i = 0; i < d; ++i) dx[i] = dyr[i] * w[i] * rstd[r] - xr[i] * scale;
  }
}

}  // namespace cadre::ops
