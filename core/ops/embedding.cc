#include "core/ops/embedding.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/ops/kernel.h"
#include "core/ops/quantize.h"
#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

void CheckIds(const Tensor& ids, int64_t rows) {
  const int32_t* id = ids.data<int32_t>();
  for (int64_t t = 0; t < ids.numel(); ++t) {
    CADRE_CHECK(id[t] >= -1 && id[t] < rows, "token {} has id {}, the vocabulary is {}", t, id[t],
                rows);
  }
}

void GatherQuantized(Context& ctx, const Tensor& ids, const std::vector<QuantizedMatrix>& runs,
                     const Tensor& y) {
  const int64_t width = y.dim(1);
  std::vector<double> values(static_cast<size_t>(width));
  for (int64_t t = 0; t < ids.numel(); ++t) {
    int64_t row = ids.data<int32_t>()[t];
    std::fill(values.begin(), values.end(), 0.0);
    for (const QuantizedMatrix& run : runs) {
      if (row >= 0 && row < run.n) DequantizeRow(run, row, values.data());
      row -= run.n;
    }
    VisitFloat(y.dtype(), [&](auto element) {
      using T = decltype(element);
      T* to = y.data<T>() + t * width;
      for (int64_t i = 0; i < width; ++i) {
        const double value = values[static_cast<size_t>(i)];
        if constexpr (std::is_same_v<T, double>) {
          to[i] = value;
        } else {
          to[i] = T(static_cast<float>(value));
        }
      }
    });
  }
}

void Gather(Context& ctx, const Tensor& ids, const Tensor& weight, const Tensor& y) {
  const size_t row = static_cast<size_t>(weight.dim(1)) * SizeOf(weight.dtype());
  const int32_t* id = ids.data<int32_t>();
  CheckIds(ids, weight.dim(0));
  ParallelFor(ctx, ids.numel(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::byte* to = y.raw() + static_cast<size_t>(t) * row;
      if (id[t] < 0) {
        std::memset(to, 0, row);
        continue;
      }
      std::memcpy(to, weight.raw() + static_cast<size_t>(id[t]) * row, row);
    }
  });
}

}  // namespace

Var Embedding(Context& ctx, const Tensor& ids, ParamId weight) {
  if (ids.device().kind == DeviceKind::kCuda) NoCudaKernel("embedding");
  Var y;
  if (const QuantizedParam* integers = ctx.parameters->quantized(weight); integers != nullptr) {
    const Shape& shape = ctx.parameters->spec(weight).shape;
    const ParamBucket& bucket =
        ctx.parameters->buckets()[static_cast<size_t>(ctx.parameters->bucket_of(weight))];
    CheckIds(ids, shape[0]);
    y.value = ctx.Empty({ids.numel(), shape[1]}, bucket.dtype);
    GatherQuantized(ctx, ids, integers->front(), y.value);
  } else {
    LeasedWeight lease(ctx, weight, Lease::kForward);
    const Tensor& table = lease.tensor();
    y.value = ctx.Empty({ids.numel(), table.dim(1)}, table.dtype());
    Gather(ctx, ids, table, y.value);
  }
  if (ctx.tape == nullptr) return y;

  y.slot = ctx.tape->NewSlot();
  if (!ctx.parameters->WantsGradient(weight)) return y;
  SlotId is = ctx.tape->NewSlot();
  Node node{.name = "embedding",
            .outputs = {y.slot},
            .saved = {{is, ids, Pass::kWeight}},
            .params = {weight}};
  node.weight_grad = [is, ys = y.slot, weight](GradContext& g) {
    Tensor dw = g.ctx().parameters->Gradient(weight), dy = g.OutputGrad(ys);
    EmbeddingGradArgs args{g.Read(is), dy, dw};
    if (KernelFor(dy) == Kernel::kReference) return EmbeddingGradReference(g.ctx(), args);
    EmbeddingGradCpu(g.ctx(), args);
  };
  ctx.tape->Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
