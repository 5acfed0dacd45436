#include "core/ops/gemm_quant.h"

#include <algorithm>

#include "core/ops/gemm.h"
#include "core/ops/gemm_quant_kernels.h"
#include "core/ops/quantize.h"
#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

struct Unit {
  size_t run;
  int64_t column;  // of c, where the run begins
  GemmBlock block;
};

// Blocks as gemm_panels.cc cuts them, in fours of panels.
std::vector<Unit> UnitsOf(const QuantGemmArgs& args) {
  const int64_t rows = std::min(args.a.rows, kMaxBlockRows);
  const int64_t down = (args.a.rows + rows - 1) / rows;
  const int64_t across = std::max<int64_t>(1, 8 / down);
  const int64_t all = (args.c.dim(1) + kPanelColumns - 1) / kPanelColumns;
  const int64_t width = ((all + across - 1) / across + 3) / 4 * 4;
  std::vector<Unit> units;
  int64_t column = 0;
  for (size_t run = 0; run < args.b.size(); ++run) {
    for (int64_t panel = 0; panel < args.b[run].panels(); panel += width) {
      for (int64_t row = 0; row < args.a.rows; row += rows) {
        units.push_back({run,
                         column,
                         {.row = row,
                          .rows = std::min(rows, args.a.rows - row),
                          .panel = panel,
                          .panels = std::min(width, args.b[run].panels() - panel)}});
      }
    }
    column += args.b[run].n;
  }
  return units;
}

}  // namespace

int64_t QuantScratchBytes(const QuantizedMatrix& weights, int64_t rows, Bf16Kernel kernel) {
  const int64_t sums = weights.mins.defined() ? rows * weights.groups() * 4 : 0;
  if (kernel == Bf16Kernel::kSimd) return weights.k_padded * kPanelColumns * 4 + sums;
  return (rows + 31) / 32 * 32 * weights.k_padded * 2 + sums;
}

void QuantGemm(Context& ctx, const QuantGemmArgs& args) {
  const QuantizedMatrix& first = args.b.front();
  const Panels product{.k = first.k,
                       .n = args.c.dim(1),
                       .k_padded = first.k_padded,
                       .dtype = DType::kBF16,
                       .data = {}};
  const PanelGemmArgs gemm{.a = args.a, .b = product, .c = args.c, .bias = args.bias};
  const int64_t rows = std::min(args.a.rows, kMaxBlockRows);
  int64_t bytes = 0;
  for (const QuantizedMatrix& run : args.b) {
    bytes = std::max(bytes, (QuantScratchBytes(run, rows, args.kernel) + 63) / 64 * 64);
  }
  const Tensor scratch = ctx.Empty({bytes * ctx.threads}, DType::kU8);
  const std::vector<Unit> units = UnitsOf(args);
  LastPacked last(ctx);
  ParallelUnits(ctx, static_cast<int64_t>(units.size()), [&](int64_t i) {
    const Unit& unit = units[static_cast<size_t>(i)];
    QuantBlock block{gemm, args.b[unit.run], unit.column, unit.block};
    const int64_t rows = static_cast<int64_t>(unit.run) * args.a.rows + unit.block.row;
    block.block.packed = last.Again(omp_get_thread_num(), rows);
    std::byte* own = scratch.raw() + omp_get_thread_num() * bytes;
    if (args.kernel == Bf16Kernel::kSimd) return GemmBlockQuantSimd(block, own);
    GemmBlockQuantAvx512(block, own);
  });
}

bool QuantizedWeightGemm(Context& ctx, const QuantizedWeightArgs& args) {
  const QuantizedParam* param = ctx.parameters->quantized(args.param);
  if (param == nullptr) return false;
  if (args.c.numel() == 0) return true;
  const std::vector<QuantizedMatrix>& runs =
      (*param)[static_cast<size_t>(std::max<int64_t>(args.expert, 0))];
  const QuantizedMatrix& first = runs.front();
  const DType floats = first.bits == 32 ? DType::kF32 : DType::kBF16;
  if (first.floats() && args.a.dtype() == floats) {
    const Panels panels{.k = first.k,
                        .n = first.n,
                        .k_padded = first.k_padded,
                        .dtype = floats,
                        .data = first.codes};
    PanelGemm(ctx,
              {.a = {args.a.raw(), args.a.dim(0)}, .b = panels, .c = args.c, .bias = args.bias});
    return true;
  }
  if (first.floats() || args.a.dtype() != DType::kBF16) {
    Gemm(ctx, {.a = args.a,
               .b = Dequantize(ctx, runs, args.a.dtype()),
               .c = args.c,
               .transpose_b = true,
               .bias = args.bias});
    return true;
  }
  QuantGemm(ctx, {.a = {args.a.raw(), args.a.dim(0)}, .b = runs, .c = args.c, .bias = args.bias});
  return true;
}

}  // namespace cadre::ops
