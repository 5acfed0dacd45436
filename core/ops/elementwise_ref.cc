#include "core/ops/elementwise_kernels.h"

namespace cadre::ops {

void AddReference(Context&, const Tensor& a, const Tensor& b, const Tensor& y) {
  const double *pa = a.data<double>(), *pb = b.data<double>();
  double* py = y.data<double>();
  for (int64_t i = 0; i < a.numel(); ++i) py[i] = pa[i] + pb[i];
}

void ScaleReference(Context&, const Tensor& x, double factor, const Tensor& y) {
  const double* px = x.data<double>();
  double* py = y.data<double>();
  for (int64_t i = 0; i < x.numel(); ++i) py[i] = px[i] * factor;
}

}  // namespace cadre::ops
