#include "core/dtype.h"

#include <array>
#include <cmath>
#include <string>

namespace cadre {
namespace {

struct Row {
  DType dtype;
  std::string_view name;
  size_t size;
};

constexpr std::array<Row, 8> kRows = {{{DType::kF64, "f64", 8},
                                       {DType::kF32, "f32", 4},
                                       {DType::kBF16, "bf16", 2},
                                       {DType::kF16, "f16", 2},
                                       {DType::kI8, "i8", 1},
                                       {DType::kU8, "u8", 1},
                                       {DType::kI32, "i32", 4},
                                       {DType::kI64, "i64", 8}}};

}  // namespace

size_t SizeOf(DType dtype) { return kRows[static_cast<size_t>(dtype)].size; }

std::string_view Name(DType dtype) { return kRows[static_cast<size_t>(dtype)].name; }

absl::StatusOr<DType> ParseDType(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.dtype;
  }
  return InvalidArgument("dtype '{}': allowed are f64, f32, bf16, f16, i8, u8, i32, i64",
                         std::string(name));
}

F16::F16(float value) {
  uint32_t u = std::bit_cast<uint32_t>(value);
  uint32_t sign = (u >> 16) & 0x8000u;
  uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    bits = static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  } else if (magnitude >= 0x477ff000u) {
    bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded 10-bit mantissa in the low bits.
    float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  } else {
    uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    bits = static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
}

F16::operator float() const {
  uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  uint32_t exponent = (bits >> 10) & 0x1fu;
  uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {
    float value = std::ldexp(static_cast<float>(mantissa), -24);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

}  // namespace cadre
