#include "model/initialize.h"

#include <algorithm>
#include <vector>

#include "core/ops/elementwise.h"
#include "core/parallel_for.h"
#include "core/parameters.h"
#include "core/random.h"
#include "model/param_layout.h"

namespace cadre {
namespace {

constexpr int64_t kPiece = int64_t{1} << 20;  // elements on their way

void FillNormal(Context& ctx, const ParamSpec& spec, uint64_t seed, const Tensor& flat) {
  for (int64_t begin = 0; begin < flat.numel(); begin += kPiece) {
    const int64_t count = std::min(kPiece, flat.numel() - begin);
    // In fp32 first, so that f64 and f32 runs start from the same weights.
    Tensor rounded = ctx.Empty({count}, DType::kF32);
    float* values = rounded.data<float>();
    ParallelFor(ctx, count, 4096, [&](int64_t from, int64_t to) {
      ForEachRun(spec, begin + from, begin + to, [&](const ParamRun& run) {
        const RandomKey key(seed, run.source->tensor);
        for (int64_t i = 0; i < run.count; ++i) {
          const auto index = static_cast<uint64_t>(run.stored + i * run.stored_stride);
          values[run.local - begin + i] = static_cast<float>(spec.init.stddev * key.Normal(index));
        }
      });
    });
    ops::ConvertInto(ctx, rounded, flat.Narrow(begin, count));
  }
}

void FillConstant(Context& ctx, double value, const Tensor& logical) {
  std::vector<float> values(static_cast<size_t>(logical.numel()), static_cast<float>(value));
  ops::ConvertInto(
      ctx, Tensor::Of<float>(*ctx.allocator, logical.shape(), std::span<const float>(values)),
      logical);
}

}  // namespace

void InitializeParameters(Context& ctx, uint64_t seed) {
  ParameterStore& store = *ctx.parameters;
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    LeasedWeight weight(ctx, id, Lease::kWrite);
    Tensor flat = weight.tensor().Reshape({weight.tensor().numel()});
    switch (spec.init.kind) {
      case Initializer::Kind::kNormal:
        FillNormal(ctx, spec, seed, flat);
        break;
      case Initializer::Kind::kOnes:
        FillConstant(ctx, 1.0, flat);
        break;
      case Initializer::Kind::kZeros:
        FillConstant(ctx, 0.0, flat);
        break;
    }
  }
  store.WeightsChanged();
}

}  // namespace cadre
