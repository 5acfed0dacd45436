// Comparisons of fp32 and bf16 tensors for this folder's tests.
#pragma once

#include <cmath>
#include <cstring>

#include "core/tensor.h"

namespace cadre::testing_tensors {

inline bool SameBits(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

// Of fp32, in L2.
inline double RelativeError(const Tensor& got, const Tensor& want) {
  CADRE_CHECK(got.shape() == want.shape(), "{} and {}", got.shape().ToString(),
              want.shape().ToString());
  double error = 0, norm = 0;
  for (int64_t i = 0; i < want.numel(); ++i) {
    const double value = want.data<float>()[i], off = got.data<float>()[i] - value;
    error += off * off;
    norm += value * value;
  }
  return std::sqrt(error / norm);
}

}  // namespace cadre::testing_tensors
