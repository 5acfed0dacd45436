#include "model/initialize.h"

#include <vector>

#include "core/ops/elementwise.h"
#include "core/parallel_for.h"
#include "core/parameters.h"
#include "core/random.h"
#include "model/param_layout.h"

namespace cadre {
namespace {

void FillNormal(Context& ctx, const ParamSpec& spec, uint64_t seed, const Tensor& logical) {
  int64_t done = 0;
  for (const ParamSource& source : spec.sources) {
    RandomKey key(seed, source.tensor);
    int64_t count = SliceElements(source), begin = SliceBegin(source);
    Tensor stored = ctx.Empty({count}, DType::kF64);
    double* values = stored.data<double>();
    ParallelFor(ctx, count, 4096, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        values[i] = spec.init.stddev * key.Normal(static_cast<uint64_t>(begin + i));
      }
    });
    // Rounded to fp32 first, so that f64 and f32 runs start from the same weights.
    Tensor rounded = ops::CastTensor(ctx, stored, DType::kF32);
    Tensor permuted = ctx.Empty({count}, DType::kF32);
    StoredToLogical(source, sizeof(float), rounded.raw(), permuted.raw());
    ops::ConvertInto(ctx, permuted, logical.Narrow(done, count));
    done += count;
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
    LeasedWeight weight(ctx, id, Lease::kForward);
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
