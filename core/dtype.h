// Element types and the two 16-bit floats. Conversions round to nearest even.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/status.h"

namespace cadre {

enum class DType : uint8_t { kF64, kF32, kBF16, kF16, kI8, kU8, kI32, kI64 };

size_t SizeOf(DType dtype);

// "f64", "f32", "bf16", "f16", "i8", "u8", "i32", "i64".
std::string_view Name(DType dtype);
absl::StatusOr<DType> ParseDType(std::string_view name);

struct BF16 {
  uint16_t bits = 0;

  BF16() = default;
  explicit BF16(float value) {
    uint32_t u = std::bit_cast<uint32_t>(value);
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? static_cast<uint16_t>((u >> 16) | 0x40u)
               : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
  explicit operator double() const { return static_cast<float>(*this); }
};

struct F16 {
  uint16_t bits = 0;

  F16() = default;
  explicit F16(float value);
  explicit operator float() const;
  explicit operator double() const { return static_cast<float>(*this); }
};

template <typename T>
struct DTypeOfImpl;
template <>
struct DTypeOfImpl<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeOfImpl<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOfImpl<BF16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeOfImpl<F16> {
  static constexpr DType value = DType::kF16;
};
template <>
struct DTypeOfImpl<int8_t> {
  static constexpr DType value = DType::kI8;
};
template <>
struct DTypeOfImpl<uint8_t> {
  static constexpr DType value = DType::kU8;
};
template <>
struct DTypeOfImpl<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOfImpl<int64_t> {
  static constexpr DType value = DType::kI64;
};
template <typename T>
inline constexpr DType kDTypeOf = DTypeOfImpl<T>::value;

// Calls visitor(T{}) with the C++ type of a floating dtype; any other dtype is a broken invariant.
template <typename Visitor>
decltype(auto) VisitFloat(DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::kF64:
      return visitor(double{});
    case DType::kF32:
      return visitor(float{});
    case DType::kBF16:
      return visitor(BF16{});
    case DType::kF16:
      return visitor(F16{});
    default:
      break;
  }
  CADRE_CHECK(false, "dtype {} is not a floating type", static_cast<int>(dtype));
  __builtin_unreachable();
}

}  // namespace cadre
