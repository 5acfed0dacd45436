#include "core/ops/quantize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/ops/gemm_panels.h"
#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

constexpr int64_t kPanelRows = 16;

float ScaleAt(const Tensor& scales, int64_t i) {
  return scales.dtype() == DType::kF32 ? scales.data<float>()[i]
                                       : static_cast<float>(scales.data<F16>()[i]);
}

// What no codes stand for has NaN for its scale.
template <typename Scale>
void NoCodes(int64_t count, int8_t code, int8_t* codes, Scale* scale) {
  std::fill_n(codes, count, code);
  *scale = Scale(NAN);
}

bool AllFinite(const float* w, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i)
    finite &= std::fabs(w[i]) <= std::numeric_limits<float>::max();
  return finite;
}

void EightBits(const float* w, int64_t k, int8_t* codes, float* scale) {
  if (!AllFinite(w, k)) return NoCodes(k, 0, codes, scale);
  float most = 0.0f;
  for (int64_t i = 0; i < k; ++i) most = std::max(most, std::fabs(w[i]));
  *scale = most / 127.0f;
  const float inverse = *scale > 0.0f ? 1.0f / *scale : 0.0f;
  for (int64_t i = 0; i < k; ++i) {
    codes[i] = static_cast<int8_t>(std::clamp(std::nearbyint(w[i] * inverse), -127.0f, 127.0f));
  }
}

float FourBitCode(float w, float inverse) {
  return std::clamp(std::nearbyint(w * inverse), -8.0f, 7.0f);
}

void FourBits(const float* w, int64_t count, int8_t* codes, F16* scale) {
  float most = 0.0f;
  for (int64_t i = 0; i < count; ++i) most = std::fabs(w[i]) > std::fabs(most) ? w[i] : most;
  // An f16 scale may be too small for what f32 holds.
  if (!AllFinite(w, count) || std::isinf(static_cast<float>(F16(most / -8.0f)))) {
    return NoCodes(count, 8, codes, scale);
  }
  float best = 0.0f, least = INFINITY;
  for (const float shrink : {1.0f, 0.95f, 0.9f, 0.85f}) {
    const auto d = static_cast<float>(F16(most / -8.0f * shrink));
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    float error = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      const float off = FourBitCode(w[i], inverse) * d - w[i];
      error += off * off;
    }
    if (error < least) {
      least = error;
      best = d;
    }
  }
  *scale = F16(best);
  const float inverse = best != 0.0f ? 1.0f / best : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<int8_t>(FourBitCode(w[i], inverse) + 8.0f);
  }
}

// Where element k of row r of a panel lies: its byte, and its lowest bit there.
struct CodePlace {
  int64_t byte;
  int shift;
};

CodePlace PlaceOf(int bits, int64_t r, int64_t k) {
  if (bits == 8) return {k * kPanelRows + r, 0};
  const int64_t word = k / 8 * 32 + r * 2 + k % 2, nibble = k % 8 / 2;
  return {word * 2 + nibble / 2, static_cast<int>(nibble % 2 * 4)};
}

int CodeAt(const QuantizedMatrix& matrix, int64_t row, int64_t k) {
  const std::byte* panel = matrix.codes.raw() + row / kPanelRows * matrix.panel_bytes();
  const CodePlace place = PlaceOf(matrix.bits, row % kPanelRows, k);
  if (matrix.bits == 8) return std::to_integer<int8_t>(panel[place.byte]);
  return std::to_integer<int>(panel[place.byte] >> place.shift) & 15;
}

struct RowOfParts {
  const QuantizedRows* part;
  int64_t row;
};

RowOfParts FindRow(const std::vector<QuantizedRows>& parts, int64_t row) {
  for (const QuantizedRows& part : parts) {
    if (row < part.n) return {&part, row};
    row -= part.n;
  }
  return {nullptr, 0};
}

void PackPanel(const std::vector<QuantizedRows>& parts, int64_t panel, QuantizedMatrix& to) {
  std::byte* codes = to.codes.raw() + panel * to.panel_bytes();
  const int zero = to.bits == 8 ? to.zero : to.zero * 17;
  std::memset(codes, zero, static_cast<size_t>(to.panel_bytes()));
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const RowOfParts from = FindRow(parts, panel * kPanelRows + r);
    if (from.part == nullptr) continue;
    const int8_t* row = from.part->codes.data<int8_t>() + from.row * to.k;
    for (int64_t k = 0; k < to.k; ++k) {
      const CodePlace place = PlaceOf(to.bits, r, k);
      if (to.bits == 8) {
        codes[place.byte] = static_cast<std::byte>(row[k]);
      } else {
        const std::byte others = codes[place.byte] & std::byte(0xf0 >> place.shift);
        codes[place.byte] = others | std::byte((row[k] & 15) << place.shift);
      }
    }
    auto spread = [&](const Tensor& values, const Tensor& into) {
      const auto width = static_cast<int64_t>(SizeOf(values.dtype()));
      const int64_t filled = from.part->groups();
      for (int64_t g = 0; g < filled; ++g) {
        std::memcpy(into.raw() + ((panel * to.groups() + g) * kPanelRows + r) * width,
                    values.raw() + (from.row * filled + g) * width, static_cast<size_t>(width));
      }
    };
    spread(from.part->scales, to.scales);
    if (to.mins.defined()) spread(from.part->mins, to.mins);
  }
}

}  // namespace

QuantizedRows QuantizeRows(Context& ctx, const Tensor& w, WeightFormat format) {
  const bool eight = format == WeightFormat::kInt8;
  QuantizedRows rows{.n = w.dim(0),
                     .k = w.dim(1),
                     .bits = eight ? 8 : 4,
                     .group = eight ? 0 : kInt4Group,
                     .zero = eight ? 0 : 8};
  rows.codes = ctx.Empty({rows.n, rows.k}, DType::kI8);
  rows.scales = ctx.Empty({rows.n, rows.groups()}, eight ? DType::kF32 : DType::kF16);
  ParallelFor(ctx, rows.n, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(rows.k));
    for (int64_t n = begin; n < end; ++n) {
      VisitFloat(w.dtype(), [&](auto element) {
        const auto* from = w.data<decltype(element)>() + n * rows.k;
        for (int64_t k = 0; k < rows.k; ++k) {
          row[static_cast<size_t>(k)] = static_cast<float>(from[k]);
        }
      });
      int8_t* codes = rows.codes.data<int8_t>() + n * rows.k;
      if (eight) {
        EightBits(row.data(), rows.k, codes, rows.scales.data<float>() + n);
        continue;
      }
      F16* scales = rows.scales.data<F16>() + n * rows.groups();
      for (int64_t k = 0; k < rows.k; k += rows.group) {
        FourBits(row.data() + k, std::min(rows.group, rows.k - k), codes + k,
                 scales + k / rows.group);
      }
    }
  });
  return rows;
}

QuantizedMatrix PackQuantized(Context& ctx, const std::vector<QuantizedRows>& parts) {
  const QuantizedRows& first = parts.front();
  QuantizedMatrix to{.k = first.k, .bits = first.bits, .zero = first.zero};
  CADRE_CHECK(first.bits == 4 || first.zero == 0, "codes of 8 bits around {}", first.zero);
  for (const QuantizedRows& part : parts) {
    CADRE_CHECK(part.k == first.k && part.bits == first.bits && part.group == first.group &&
                    part.zero == first.zero && part.mins.defined() == first.mins.defined(),
                "rows of {} columns, {} bits and groups of {} below others of {}, {} and {}",
                part.k, part.bits, part.group, first.k, first.bits, first.group);
    to.n += part.n;
  }
  to.k_padded = (to.k + 31) / 32 * 32;
  to.group = first.group == 0 ? to.k_padded : first.group;
  to.codes = ctx.Empty({to.panels() * to.panel_bytes()}, DType::kU8);
  const Shape scales = {to.panels(), to.groups(), kPanelRows};
  to.scales = ctx.Zeros(scales, first.scales.dtype());
  if (first.mins.defined()) to.mins = ctx.Zeros(scales, first.mins.dtype());
  ParallelFor(ctx, to.panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) PackPanel(parts, panel, to);
  });
  return to;
}

namespace {

QuantizedMatrix Packed(Context& ctx, const Tensor& w) {
  Panels panels;
  PackPanels(ctx, w, /*transposed=*/true, panels);
  return {.n = panels.n,
          .k = panels.k,
          .k_padded = panels.k_padded,
          .bits = 8 * static_cast<int>(SizeOf(panels.dtype)),
          .group = panels.k_padded,
          .codes = panels.data};
}

// Of a matrix of floats.
double FloatAt(const QuantizedMatrix& matrix, int64_t row, int64_t k) {
  const std::byte* panel = matrix.codes.raw() + row / kPanelRows * matrix.panel_bytes();
  const int64_t r = row % kPanelRows;
  if (matrix.bits == 32) return reinterpret_cast<const float*>(panel)[k * kPanelRows + r];
  return static_cast<double>(static_cast<float>(
      reinterpret_cast<const BF16*>(panel)[(k / 2 * kPanelRows + r) * 2 + k % 2]));
}

}  // namespace

absl::Status CheckScales(std::string_view name, const Tensor& scales) {
  for (int64_t i = 0; i < scales.numel(); ++i) {
    if (std::isfinite(ScaleAt(scales, i))) continue;
    return DataLoss("{}: a weight is no finite number, or too large for its codes", name);
  }
  return absl::OkStatus();
}

absl::Status CheckScales(std::string_view name, const QuantizedParam& param) {
  for (const auto& runs : param) {
    for (const QuantizedMatrix& matrix : runs) {
      if (matrix.floats()) continue;
      CADRE_RETURN_IF_ERROR(CheckScales(name, matrix.scales));
      if (matrix.mins.defined()) CADRE_RETURN_IF_ERROR(CheckScales(name, matrix.mins));
    }
  }
  return absl::OkStatus();
}

QuantizedParam QuantizeParam(Context& ctx, const Tensor& w, WeightFormat format) {
  QuantizedParam param;
  const int64_t columns = w.dim(-1), matrices = w.shape().rank() == 3 ? w.dim(0) : 1;
  const Tensor all = w.Reshape({w.numel() / columns, columns});
  const int64_t rows = all.dim(0) / matrices;
  for (int64_t i = 0; i < matrices; ++i) {
    const Tensor matrix = all.Narrow(i * rows, rows);
    if (format == WeightFormat::kPanels) {
      param.push_back({Packed(ctx, matrix)});
    } else {
      param.push_back({PackQuantized(ctx, {QuantizeRows(ctx, matrix, format)})});
    }
  }
  return param;
}

void DequantizeRow(const QuantizedMatrix& matrix, int64_t row, double* to) {
  if (matrix.floats()) {
    for (int64_t k = 0; k < matrix.k; ++k) to[k] = FloatAt(matrix, row, k);
    return;
  }
  const int64_t groups = matrix.groups();
  for (int64_t k = 0; k < matrix.k; ++k) {
    const int64_t group = k / matrix.group;
    const int64_t scale = (row / kPanelRows * groups + group) * kPanelRows + row % kPanelRows;
    const double min = matrix.mins.defined() ? ScaleAt(matrix.mins, scale) : 0.0;
    to[k] = (CodeAt(matrix, row, k) - matrix.zero) * double{ScaleAt(matrix.scales, scale)} - min;
  }
}

Tensor Dequantize(Context& ctx, const std::vector<QuantizedMatrix>& runs, DType dtype) {
  int64_t n = 0;
  for (const QuantizedMatrix& run : runs) n += run.n;
  const int64_t k = runs.front().k;
  const Tensor out = ctx.Empty({n, k}, dtype);
  int64_t first = 0;
  for (const QuantizedMatrix& run : runs) {
    ParallelFor(ctx, run.n, 4, [&](int64_t begin, int64_t end) {
      std::vector<double> values(static_cast<size_t>(k));
      for (int64_t row = begin; row < end; ++row) {
        DequantizeRow(run, row, values.data());
        VisitFloat(dtype, [&](auto element) {
          using T = decltype(element);
          T* to = out.data<T>() + (first + row) * k;
          for (int64_t i = 0; i < k; ++i) {
            const double value = values[static_cast<size_t>(i)];
            if constexpr (std::is_same_v<T, double>) {
              to[i] = value;
            } else {
              to[i] = T(static_cast<float>(value));
            }
          }
        });
      }
    });
    first += run.n;
  }
  return out;
}

}  // namespace cadre::ops
