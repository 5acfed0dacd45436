#include "core/ops/op_check.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/random.h"

namespace cadre::ops {
namespace {

// Rounded to bf16 first, so that every dtype sees the same numbers.
void FillNormal(const Tensor& tensor, uint64_t stream, double scale) {
  RandomKey key(7, "op_check");
  VisitFloat(tensor.dtype(), [&](auto t) {
    auto* data = tensor.data<decltype(t)>();
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      double value = static_cast<double>(BF16(static_cast<float>(scale * key.Normal(i, stream))));
      data[i] = static_cast<decltype(t)>(value);
    }
  });
}

double At(const Tensor& tensor, int64_t i) {
  return VisitFloat(tensor.dtype(),
                    [&](auto t) { return static_cast<double>(tensor.data<decltype(t)>()[i]); });
}

struct Setup {
  ParameterStore store;
  Tape tape{&Accumulate};
  Context ctx;
  std::vector<Var> inputs;
  std::vector<ParamId> params;

  Setup(const OpCase& op_case, DType dtype, int threads, Allocator& allocator) {
    for (size_t i = 0; i < op_case.params.size(); ++i) {
      params.push_back(store.Add({.name = "p" + std::to_string(i), .shape = op_case.params[i]}));
    }
    store.Allocate(allocator, dtype, {.gradients = true});
    ctx = {.allocator = &allocator,
           .threads = threads,
           .parameters = &store,
           .tape = &tape,
           .seed = 3};
    for (size_t i = 0; i < params.size(); ++i) {
      FillNormal(store.Acquire(params[i], Lease::kForward), 1000 + i, 1.0);
      store.Release(params[i], Lease::kForward);
    }
    for (size_t i = 0; i < op_case.inputs.size(); ++i) {
      Var var{Tensor::Empty(allocator, op_case.inputs[i], dtype), tape.NewSlot()};
      FillNormal(var.value, i, op_case.input_scale);
      tape.KeepGrad(var.slot);
      inputs.push_back(var);
    }
  }

  Tensor Probe(const Tensor& output) {
    Tensor probe = ctx.Empty(output.shape(), output.dtype());
    FillNormal(probe, 5000, 1.0);
    return probe;
  }
};

double ProbedLoss(const OpCase& op_case, Setup& setup) {
  Context ctx = setup.ctx;
  ctx.tape = nullptr;
  Var y = op_case.op(ctx, setup.inputs, setup.params);
  Tensor probe = setup.Probe(y.value);
  double loss = 0;
  for (int64_t i = 0; i < probe.numel(); ++i) loss += At(y.value, i) * At(probe, i);
  return loss;
}

// Central differences of every element of `at`, against `gradient`.
void CheckFiniteDifferences(const OpCase& op_case, Setup& setup, const Tensor& at,
                            const Tensor& gradient, const std::string& what) {
  constexpr double kStep = 1e-5;
  double error = 0, norm = 0;
  double* data = at.data<double>();
  for (int64_t i = 0; i < at.numel(); ++i) {
    double saved = data[i];
    data[i] = saved + kStep;
    double up = ProbedLoss(op_case, setup);
    data[i] = saved - kStep;
    double down = ProbedLoss(op_case, setup);
    data[i] = saved;
    double want = (up - down) / (2 * kStep), got = gradient.defined() ? At(gradient, i) : 0.0;
    error += (got - want) * (got - want);
    norm += want * want;
  }
  EXPECT_LE(std::sqrt(error), op_case.finite_difference_tolerance * std::sqrt(norm) + 1e-9) << what;
}

void CheckReferenceGradients(const OpCase& op_case, const OpRun& reference, Allocator& allocator) {
  Setup setup(op_case, DType::kF64, 1, allocator);
  for (size_t i = 0; i < setup.inputs.size(); ++i) {
    CheckFiniteDifferences(op_case, setup, setup.inputs[i].value, reference.input_grads[i],
                           "input " + std::to_string(i));
  }
  for (size_t i = 0; i < setup.params.size(); ++i) {
    Tensor weight = setup.store.Acquire(setup.params[i], Lease::kForward);
    CheckFiniteDifferences(op_case, setup, weight, reference.param_grads[i],
                           "param " + std::to_string(i));
    setup.store.Release(setup.params[i], Lease::kForward);
  }
}

void CheckRun(const OpRun& got, const OpRun& want, double tolerance, const std::string& what) {
  EXPECT_LE(RelativeError(got.output, want.output), tolerance) << what << ": output";
  for (size_t i = 0; i < want.input_grads.size(); ++i) {
    ASSERT_EQ(got.input_grads[i].defined(), want.input_grads[i].defined());
    if (!want.input_grads[i].defined()) continue;
    EXPECT_LE(RelativeError(got.input_grads[i], want.input_grads[i]), tolerance)
        << what << ": gradient of input " << i;
  }
  for (size_t i = 0; i < want.param_grads.size(); ++i) {
    EXPECT_LE(RelativeError(got.param_grads[i], want.param_grads[i]), tolerance)
        << what << ": gradient of param " << i;
  }
}

void CheckSame(const OpRun& a, const OpRun& b, const std::string& what) {
  EXPECT_TRUE(SameBits(a.output, b.output)) << what << ": output";
  for (size_t i = 0; i < a.input_grads.size(); ++i) {
    EXPECT_TRUE(SameBits(a.input_grads[i], b.input_grads[i])) << what << ": input " << i;
  }
  for (size_t i = 0; i < a.param_grads.size(); ++i) {
    EXPECT_TRUE(SameBits(a.param_grads[i], b.param_grads[i])) << what << ": param " << i;
  }
}

}  // namespace

OpRun RunOp(const OpCase& op_case, DType dtype, int threads, Allocator& allocator) {
  Setup setup(op_case, dtype, threads, allocator);
  Var y = op_case.op(setup.ctx, setup.inputs, setup.params);
  OpRun run{.output = y.value};
  setup.tape.Seed(y.slot, setup.Probe(y.value));
  setup.tape.Backward(setup.ctx);
  for (const Var& input : setup.inputs)
    run.input_grads.push_back(setup.tape.Grad(setup.ctx, input.slot));
  for (ParamId param : setup.params) run.param_grads.push_back(setup.store.Gradient(param));
  return run;
}

double RelativeError(const Tensor& got, const Tensor& want) {
  if (got.numel() != want.numel()) return INFINITY;
  double error = 0, norm = 0;
  for (int64_t i = 0; i < want.numel(); ++i) {
    double difference = At(got, i) - At(want, i);
    error += difference * difference;
    norm += At(want, i) * At(want, i);
  }
  return norm == 0 ? std::sqrt(error) : std::sqrt(error / norm);
}

bool SameBits(const Tensor& a, const Tensor& b) {
  if (a.defined() != b.defined()) return false;
  if (!a.defined()) return true;
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

void CheckOp(const OpCase& op_case) {
  HostAllocator allocator;
  OpRun reference = RunOp(op_case, DType::kF64, 1, allocator);
  CheckReferenceGradients(op_case, reference, allocator);
  for (DType dtype : op_case.dtypes) {
    double tolerance = dtype == DType::kF32 ? op_case.f32_tolerance : op_case.bf16_tolerance;
    OpRun one = RunOp(op_case, dtype, 1, allocator);
    CheckRun(one, reference, tolerance, std::string(Name(dtype)));
    CheckSame(one, RunOp(op_case, dtype, 2, allocator), std::string(Name(dtype)) + " at 2 threads");
  }
}

TEST(Elementwise, Add) {
  CheckOp({.inputs = {{5, 37}, {5, 37}},
           .op = [](Context& ctx, std::span<const Var> x, auto) { return Add(ctx, x[0], x[1]); }});
}

TEST(Elementwise, AddOfItselfDoublesTheGradient) {
  CheckOp({.inputs = {{3, 7}}, .op = [](Context& ctx, std::span<const Var> x, auto) {
             return Add(ctx, Add(ctx, x[0], x[0]), x[0]);
           }});
}

TEST(Elementwise, Scale) {
  CheckOp({.inputs = {{5, 37}},
           .op = [](Context& ctx, std::span<const Var> x, auto) { return Scale(ctx, x[0], 0.37f); },
           .finite_difference_tolerance = 1e-5});
}

}  // namespace cadre::ops
