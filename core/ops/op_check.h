// Checks of an op for its test: the gradients of the f64 reference against finite differences, the
// production kernels against that reference in f32 and bf16, and the same bits at 1 and 2 threads.
//
//   TEST(RmsNorm, Checks) {
//     CheckOp({.inputs = {{5, 37}}, .params = {{37}},
//              .op = [](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
//                return RmsNorm(ctx, x[0], {w[0], 1e-5f}); }});
//   }
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "core/tape.h"

namespace cadre::ops {

using OpUnderTest =
    std::function<Var(Context& ctx, std::span<const Var> inputs, std::span<const ParamId> params)>;

struct OpCase {
  std::vector<Shape> inputs;  // filled with normal numbers
  std::vector<Shape> params;
  OpUnderTest op;
  std::vector<DType> dtypes = {DType::kF32, DType::kBF16};
  double finite_difference_tolerance = 1e-6;  // relative L2, f64
  double f32_tolerance = 2e-5;                // relative L2 to the reference
  double bf16_tolerance = 2e-2;
  double input_scale = 1.0;
};

// One run: the output and the gradients of sum(output * probe), probe a fixed random tensor.
struct OpRun {
  Tensor output;
  std::vector<Tensor> input_grads;  // undefined where none arrived
  std::vector<Tensor> param_grads;
};

OpRun RunOp(const OpCase& op_case, DType dtype, int threads, Allocator& allocator);
double RelativeError(const Tensor& got, const Tensor& want);
bool SameBits(const Tensor& a, const Tensor& b);
void CheckOp(const OpCase& op_case);

}  // namespace cadre::ops
