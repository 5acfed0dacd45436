#include "core/ops/gemm_panels.h"

#include <algorithm>
#include <cstring>

#include "core/ops/gemm_kernels.h"
#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

// One panel in plain loops: element (k, column) goes to [k / pair][column][k % pair].
template <typename T>
void PackPanelPlain(const Tensor& b, bool transposed, int64_t column, const Panels& panels, T* to) {
  constexpr int64_t kPair = sizeof(T) == 2 ? 2 : 1;
  const T* data = b.data<T>();
  const int64_t width = std::min(kPanelColumns, panels.n - column);
  std::memset(static_cast<void*>(to), 0, panels.panel_bytes());
  for (int64_t k = 0; k < panels.k; ++k) {
    for (int64_t c = 0; c < width; ++c) {
      const int64_t from = transposed ? (column + c) * panels.k + k : k * panels.n + column + c;
      to[(k / kPair * kPanelColumns + c) * kPair + k % kPair] = data[from];
    }
  }
}

// Panels `index` and, where there is one, `index` + 1.
void PackPanelPair(const Tensor& b, bool transposed, int64_t index, const Panels& panels,
                   Bf16Kernel kernel) {
  std::byte* to = panels.data.raw() + static_cast<size_t>(index) * panels.panel_bytes();
  std::byte* next = index + 1 < panels.count() ? to + panels.panel_bytes() : nullptr;
  const int64_t column = index * kPanelColumns;
  if (panels.dtype == DType::kBF16 && kernel != Bf16Kernel::kSimd) {
    const BF16* data = b.data<BF16>();
    if (!transposed) return PackPanelsAvx512(data, panels.k, panels.n, column, to, next);
    PackTransposedPanelAvx512(data, panels.k, panels.n, column, to);
    if (next != nullptr)
      PackTransposedPanelAvx512(data, panels.k, panels.n, column + kPanelColumns, next);
    return;
  }
  for (std::byte* panel : {to, next}) {
    if (panel == nullptr) continue;
    const int64_t at = column + (panel == to ? 0 : kPanelColumns);
    if (panels.dtype == DType::kF32)
      PackPanelPlain(b, transposed, at, panels, reinterpret_cast<float*>(panel));
    else
      PackPanelPlain(b, transposed, at, panels, reinterpret_cast<BF16*>(panel));
  }
}

// Blocks of c are cut alike at every thread count; which thread takes one changes no bit. A block's
// left-hand rows stay in a core's second-level cache while the panels pass by.
GemmBlock BlockShape(int64_t rows, int64_t panels) {
  const int64_t block_rows = std::min(rows, kMaxBlockRows);
  const int64_t down = (rows + block_rows - 1) / block_rows;
  // At least eight blocks, so that two threads end together; pairs of panels.
  const int64_t across = std::max<int64_t>(1, 8 / down);
  const int64_t width = ((panels + across - 1) / across + 1) / 2 * 2;
  return {.row = 0, .rows = block_rows, .panel = 0, .panels = std::min(width, panels)};
}

}  // namespace

void PackPanels(Context& ctx, const Tensor& b, bool transposed, Panels& panels, Bf16Kernel kernel) {
  CADRE_CHECK(b.dtype() == DType::kF32 || b.dtype() == DType::kBF16, "gemm of dtype {}",
              static_cast<int>(b.dtype()));
  panels.k = b.dim(transposed ? 1 : 0);
  panels.n = b.dim(transposed ? 0 : 1);
  panels.dtype = b.dtype();
  panels.k_padded = b.dtype() == DType::kBF16 ? (panels.k + 31) / 32 * 32 : panels.k;
  const int64_t bytes = panels.count() * static_cast<int64_t>(panels.panel_bytes());
  if (!panels.data.defined() || panels.data.numel() != bytes) {
    panels.data = Tensor();
    panels.data = ctx.Empty({bytes}, DType::kU8);
  }
  ParallelFor(ctx, (panels.count() + 1) / 2, 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) PackPanelPair(b, transposed, 2 * i, panels, kernel);
  });
}

void PanelGemm(Context& ctx, const PanelGemmArgs& args) {
  const Bf16Kernel kernel = args.b.dtype == DType::kBF16 ? args.kernel : Bf16Kernel::kSimd;
  const GemmBlock shape = BlockShape(args.a.rows, args.b.count());
  const int64_t down = (args.a.rows + shape.rows - 1) / shape.rows;
  const int64_t across = (args.b.count() + shape.panels - 1) / shape.panels;
  const int64_t block_bytes =
      (shape.rows + 31) / 32 * 32 * args.b.k_padded * static_cast<int64_t>(SizeOf(args.b.dtype));
  Tensor scratch;
  if (kernel != Bf16Kernel::kSimd || args.a.transposed) {
    scratch = ctx.Empty({block_bytes * ctx.threads}, DType::kU8);
  }
  LastPacked last(ctx);
  ParallelUnits(ctx, down * across, [&](int64_t unit) {
    GemmBlock block{.row = unit % down * shape.rows, .panel = unit / down * shape.panels};
    block.rows = std::min(shape.rows, args.a.rows - block.row);
    block.panels = std::min(shape.panels, args.b.count() - block.panel);
    block.packed = last.Again(omp_get_thread_num(), block.row);
    std::byte* left =
        scratch.defined() ? scratch.raw() + omp_get_thread_num() * block_bytes : nullptr;
    switch (kernel) {
      case Bf16Kernel::kSimd:
        return GemmBlockSimd(args, block, left);
      case Bf16Kernel::kAvx512:
        return GemmBlockAvx512(args, block, left);
      case Bf16Kernel::kAmx:
        return GemmBlockAmx(args, block, left);
    }
  });
}

}  // namespace cadre::ops
