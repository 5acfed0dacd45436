#include "core/ops/columns.h"

#include <cstring>

#include "core/ops/kernel.h"
#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

struct Strip {
  std::byte* data;  // null: zeros when concatenating, skipped when splitting
  size_t bytes;     // of one row
};

enum class Direction : uint8_t { kSplit, kConcat };

// Copies between a matrix of row_bytes rows and the strips that its columns are.
void CopyStrips(const Context& ctx, Direction direction, std::byte* matrix, int64_t rows,
                std::span<const Strip> strips) {
  size_t row_bytes = 0;
  for (const Strip& strip : strips) row_bytes += strip.bytes;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 16) / static_cast<int64_t>(row_bytes));
  ParallelFor(ctx, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::byte* at = matrix + static_cast<size_t>(r) * row_bytes;
      for (const Strip& strip : strips) {
        std::byte* part =
            strip.data == nullptr ? nullptr : strip.data + static_cast<size_t>(r) * strip.bytes;
        if (direction == Direction::kSplit) {
          if (part != nullptr) std::memcpy(part, at, strip.bytes);
        } else if (part != nullptr) {
          std::memcpy(at, part, strip.bytes);
        } else {
          std::memset(at, 0, strip.bytes);
        }
        at += strip.bytes;
      }
    }
  });
}

Shape WithLast(const Shape& shape, int64_t last) {
  std::vector<int64_t> dims(shape.dims().begin(), shape.dims().end());
  dims.back() = last;
  return Shape(std::span<const int64_t>(dims));
}

// The columns of `x`, one tensor per entry of sizes.
std::vector<Tensor> Split(Context& ctx, const Tensor& x, std::span<const int64_t> sizes) {
  std::vector<Tensor> parts;
  std::vector<Strip> strips;
  for (int64_t size : sizes) {
    parts.push_back(ctx.Empty(WithLast(x.shape(), size), x.dtype()));
    strips.push_back({parts.back().raw(), static_cast<size_t>(size) * SizeOf(x.dtype())});
  }
  CopyStrips(ctx, Direction::kSplit, x.raw(), x.numel() / x.dim(-1), strips);
  return parts;
}

// The reverse, into y; an undefined part is zero.
void Concat(Context& ctx, std::span<const Tensor> parts, std::span<const int64_t> sizes,
            const Tensor& y) {
  std::vector<Strip> strips;
  for (size_t i = 0; i < parts.size(); ++i) {
    strips.push_back({parts[i].defined() ? parts[i].raw() : nullptr,
                      static_cast<size_t>(sizes[i]) * SizeOf(y.dtype())});
  }
  CopyStrips(ctx, Direction::kConcat, y.raw(), y.numel() / y.dim(-1), strips);
}

}  // namespace

std::vector<Var> SplitColumns(Context& ctx, const Var& x, std::span<const int64_t> sizes) {
  if (x.value.device().kind == DeviceKind::kCuda) NoCudaKernel("split_columns");
  int64_t sum = 0;
  for (int64_t size : sizes) {
    CADRE_CHECK(size > 0, "split into {} columns", size);
    sum += size;
  }
  CADRE_CHECK(sum == x.value.dim(-1), "split {} into {} columns", x.value.shape().ToString(), sum);
  std::vector<Var> parts;
  for (Tensor& part : Split(ctx, x.value, sizes)) parts.push_back({std::move(part)});
  if (ctx.tape == nullptr) return parts;

  std::vector<SlotId> outputs;
  for (Var& part : parts) outputs.push_back(part.slot = ctx.tape->NewSlot());
  Node node{.name = "split_columns", .inputs = {x.slot}, .outputs = outputs};
  node.input_grad = [xs = x.slot, outputs, shape = x.value.shape(), dtype = x.value.dtype(),
                     sizes = std::vector<int64_t>(sizes.begin(), sizes.end())](GradContext& g) {
    if (!g.Needs(xs)) return;
    std::vector<Tensor> grads;
    for (SlotId slot : outputs) grads.push_back(g.OutputGrad(slot));
    Tensor dx = g.ctx().Empty(shape, dtype);
    Concat(g.ctx(), grads, sizes, dx);
    g.AddGrad(xs, dx);
  };
  ctx.tape->Record(std::move(node));
  return parts;
}

Var ConcatColumns(Context& ctx, std::span<const Var> parts) {
  CADRE_CHECK(!parts.empty(), "concat of nothing");
  const Tensor& first = parts[0].value;
  if (first.device().kind == DeviceKind::kCuda) NoCudaKernel("concat_columns");
  std::vector<Tensor> values;
  std::vector<int64_t> sizes;
  std::vector<SlotId> inputs;
  int64_t sum = 0;
  for (const Var& part : parts) {
    const Tensor& value = part.value;
    CADRE_CHECK(
        value.dtype() == first.dtype() && WithLast(value.shape(), 1) == WithLast(first.shape(), 1),
        "concat {} and {}", first.shape().ToString(), value.shape().ToString());
    values.push_back(value);
    sizes.push_back(value.dim(-1));
    inputs.push_back(part.slot);
    sum += value.dim(-1);
  }
  Var y{ctx.Empty(WithLast(first.shape(), sum), first.dtype())};
  Concat(ctx, values, sizes, y.value);
  if (ctx.tape == nullptr) return y;

  y.slot = ctx.tape->NewSlot();
  Node node{.name = "concat_columns", .inputs = inputs, .outputs = {y.slot}};
  node.input_grad = [inputs, sizes, ys = y.slot, shape = y.value.shape()](GradContext& g) {
    std::vector<Tensor> grads = Split(g.ctx(), g.OutputGrad(ys).Reshape(shape), sizes);
    for (size_t i = 0; i < inputs.size(); ++i) g.AddGrad(inputs[i], grads[i]);
  };
  ctx.tape->Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
