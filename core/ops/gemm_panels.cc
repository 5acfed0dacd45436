#include "core/ops/gemm_panels.h"

#include <algorithm>
#include <cstring>

#include "core/ops/gemm_kernels.h"
#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

constexpr int64_t kStripStepBytes = 2048;  // of 32 left-hand rows x 32 of k

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
void PackPanelPair(const Tensor& b, bool transposed, int64_t index, const Panels& panels) {
  std::byte* to = panels.data.raw() + static_cast<size_t>(index) * panels.panel_bytes();
  std::byte* next = index + 1 < panels.count() ? to + panels.panel_bytes() : nullptr;
  const int64_t column = index * kPanelColumns;
  if (panels.dtype == DType::kBF16 && AmxAvailable()) {
    const BF16* data = b.data<BF16>();
    if (!transposed) return PackPanelsAmx(data, panels.k, panels.n, column, to, next);
    PackTransposedPanelAmx(data, panels.k, panels.n, column, to);
    if (next != nullptr)
      PackTransposedPanelAmx(data, panels.k, panels.n, column + kPanelColumns, next);
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

// x [K, M] -> rows [M, K].
template <typename T>
void TransposeRows(Context& ctx, const Tensor& x, const Tensor& to) {
  const int64_t k = x.dim(0), m = x.dim(1);
  const T* data = x.data<T>();
  T* out = reinterpret_cast<T*>(to.raw());
  ParallelFor(ctx, (m + 15) / 16, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < k; ++r) {
      for (int64_t c = begin * 16; c < std::min(end * 16, m); ++c) out[c * k + r] = data[r * m + c];
    }
  });
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

void PackPanels(Context& ctx, const Tensor& b, bool transposed, Panels& panels) {
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
    for (int64_t i = begin; i < end; ++i) PackPanelPair(b, transposed, 2 * i, panels);
  });
}

LeftTiles TransposeLeft(Context& ctx, const Tensor& x) {
  const int64_t k = x.dim(0), m = x.dim(1);
  LeftTiles left{.rows = m, .tiled = x.dtype() == DType::kBF16 && AmxAvailable()};
  if (!left.tiled) {
    left.data = ctx.Empty({m * k * static_cast<int64_t>(SizeOf(x.dtype()))}, DType::kU8);
    if (x.dtype() == DType::kF32)
      TransposeRows<float>(ctx, x, left.data);
    else
      TransposeRows<BF16>(ctx, x, left.data);
    return left;
  }
  const int64_t strips = (m + 31) / 32, strip_bytes = (k + 31) / 32 * kStripStepBytes;
  left.data = ctx.Empty({strips * strip_bytes}, DType::kU8);
  ParallelFor(ctx, strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      TransposeStripAmx(x.data<BF16>(), k, m, i * 32, left.data.raw() + i * strip_bytes);
    }
  });
  return left;
}

void PanelGemm(Context& ctx, const PanelGemmArgs& args) {
  const bool amx = args.b.dtype == DType::kBF16 && AmxAvailable();
  const GemmBlock shape = BlockShape(args.a.rows, args.b.count());
  const int64_t down = (args.a.rows + shape.rows - 1) / shape.rows;
  const int64_t across = (args.b.count() + shape.panels - 1) / shape.panels;
  // Left-hand rows become tiles block by block, each thread in a place of its own.
  const int64_t block_bytes = (shape.rows + 31) / 32 * (args.b.k_padded / 32) * kStripStepBytes;
  Tensor scratch;
  if (amx && !args.a.tiled) scratch = ctx.Empty({block_bytes * ctx.threads}, DType::kU8);
  ParallelUnits(ctx, down * across, [&](int64_t unit) {
    GemmBlock block{.row = unit % down * shape.rows, .panel = unit / down * shape.panels};
    block.rows = std::min(shape.rows, args.a.rows - block.row);
    block.panels = std::min(shape.panels, args.b.count() - block.panel);
    if (!amx) return GemmBlockSimd(args, block);
    GemmBlockAmx(args, block,
                 scratch.defined() ? scratch.raw() + omp_get_thread_num() * block_bytes : nullptr);
  });
}

}  // namespace cadre::ops
