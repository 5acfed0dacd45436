// The inner loops of the optimizer, vectorized; each works on one run of elements on the calling
// thread. An element's result depends on its own values alone.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace cadre {

double SumSquares(const float* values, int64_t n);
double SumSquares(const double* values, int64_t n);

// The scalars of one AdamW update; T is the arithmetic's type.
template <typename T>
struct AdamWScalars {
  T gradient_scale;
  T keep;        // 1 − lr × weight decay
  T beta1_rest;  // 1 − beta1
  T beta2;
  T beta2_rest;  // 1 − beta2
  T step_size;   // lr / (1 − beta1^t)
  T root_bias2;  // sqrt(1 − beta2^t)
  T eps;
};

template <typename T>
struct AdamWRun {
  const T* gradient;
  T* weight;  // the master copy
  T* exp_avg;
  T* exp_avg_sq;
  BF16* compute_weight;  // null where the master is the weight itself
  int64_t n;
};

void AdamWUpdate(const AdamWRun<float>& run, const AdamWScalars<float>& scalars);
void AdamWUpdate(const AdamWRun<double>& run, const AdamWScalars<double>& scalars);

}  // namespace cadre
