#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/ops/activation_kernels.h"

namespace cadre::ops {
namespace {

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

struct Gated {
  double gate, up;
  bool gate_passes, up_passes;  // whether the clamps let a gradient through
};

Gated Clamped(double gate, double up, const SwiGluArgs& args) {
  if (args.limit <= 0) return {gate, up, true, true};
  const double limit = args.limit;
  return {std::min(gate, limit), std::clamp(up, -limit, limit), gate <= limit,
          std::abs(up) <= limit};
}

double Gelu(Unary kind, double x) {
  if (kind == Unary::kGeluErf) return x * 0.5 * (1.0 + std::erf(x / std::numbers::sqrt2));
  const double inner = std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1.0 + std::tanh(inner));
}

double GeluSlope(Unary kind, double x) {
  if (kind == Unary::kGeluErf) {
    const double density = std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi);
    return 0.5 * (1.0 + std::erf(x / std::numbers::sqrt2)) + x * density;
  }
  const double scale = std::sqrt(2.0 / std::numbers::pi);
  const double t = std::tanh(scale * (x + 0.044715 * x * x * x));
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * scale * (1.0 + 3 * 0.044715 * x * x);
}

}  // namespace

void SwiGluReference(Context&, const Tensor& x, const SwiGluArgs& args, const Tensor& y) {
  const int64_t rows = x.dim(0), width = x.dim(1) / 2;
  for (int64_t r = 0; r < rows; ++r) {
    const double* row = x.data<double>() + r * 2 * width;
    double* out = y.data<double>() + r * width;
    for (int64_t i = 0; i < width; ++i) {
      Gated v = Clamped(row[i], row[width + i], args);
      out[i] = (v.up + args.up_offset) * v.gate * Sigmoid(args.alpha * v.gate);
    }
  }
}

void SwiGluGradReference(Context&, const SwiGluGradArgs& args) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1) / 2;
  for (int64_t r = 0; r < rows; ++r) {
    const double* row = args.x.data<double>() + r * 2 * width;
    const double* dy = args.dy.data<double>() + r * width;
    double* dx = args.dx.data<double>() + r * 2 * width;
    for (int64_t i = 0; i < width; ++i) {
      Gated v = Clamped(row[i], row[width + i], args.form);
      const double alpha = args.form.alpha, s = Sigmoid(alpha * v.gate);
      const double slope = s + alpha * v.gate * s * (1 - s);
      dx[i] = v.gate_passes ? dy[i] * (v.up + args.form.up_offset) * slope : 0.0;
      dx[width + i] = v.up_passes ? dy[i] * v.gate * s : 0.0;
    }
  }
}

void UnaryReference(Context&, const UnaryArgs& args, const Tensor& x, const Tensor& y) {
  const double* px = x.data<double>();
  double* py = y.data<double>();
  const double limit = args.limit;
  for (int64_t i = 0; i < x.numel(); ++i) {
    py[i] = args.kind == Unary::kClamp ? std::clamp(px[i], -limit, limit) : Gelu(args.kind, px[i]);
  }
}

void UnaryGradReference(Context&, const UnaryGradArgs& args) {
  const double *x = args.x.data<double>(), *dy = args.dy.data<double>();
  double* dx = args.dx.data<double>();
  for (int64_t i = 0; i < args.x.numel(); ++i) {
    const double slope = args.unary.kind == Unary::kClamp
                             ? static_cast<double>(std::abs(x[i]) <= args.unary.limit)
                             : GeluSlope(args.unary.kind, x[i]);
    dx[i] = dy[i] * slope;
  }
}

void SigmoidGateReference(Context&, const SigmoidGateArgs& args) {
  const int64_t rows = args.x.dim(0), d = args.x.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    const double s = Sigmoid(args.gate.data<double>()[r]);
    for (int64_t i = r * d; i < (r + 1) * d; ++i) {
      args.y.data<double>()[i] = args.x.data<double>()[i] * s;
    }
  }
}

void SigmoidGateGradReference(Context&, const SigmoidGateGradArgs& args) {
  const int64_t rows = args.x.dim(0), d = args.x.dim(1);
  const double *x = args.x.data<double>(), *dy = args.dy.data<double>();
  for (int64_t r = 0; r < rows; ++r) {
    const double s = Sigmoid(args.gate.data<double>()[r]);
    double dot = 0;
    for (int64_t i = r * d; i < (r + 1) * d; ++i) {
      args.dx.data<double>()[i] = dy[i] * s;
      dot += dy[i] * x[i];
    }
    args.dgate.data<double>()[r] = dot * s * (1 - s);
  }
}

}  // namespace cadre::ops
