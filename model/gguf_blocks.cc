#include "model/gguf_blocks.h"

#include <array>
#include <cstring>

namespace cadre {
namespace {

template <typename T>
T Read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

uint8_t Byte(std::byte b) { return std::to_integer<uint8_t>(b); }

// One block's codes, and the scale and minimum of each of its groups, exactly.
struct Block {
  std::array<int8_t, 256> codes;
  std::array<float, 16> scales, mins;
};

// Elements of a group, and the code that means 0.
struct Kind {
  int bits;
  int64_t group;
  int zero;
  bool mins;
};

Kind KindOf(GgufType type) {
  switch (type) {
    case GgufType::kQ8_0:
      return {8, 32, 0, false};
    case GgufType::kQ4_0:
      return {4, 32, 8, false};
    case GgufType::kQ4_K:
      return {4, 32, 0, true};
    case GgufType::kQ6_K:
      return {8, 16, 0, false};
    default:
      break;
  }
  CADRE_CHECK(false, "{} has no blocks", Name(type));
  __builtin_unreachable();
}

void ReadQ8_0(const std::byte* from, Block* block) {
  block->scales[0] = static_cast<float>(Read<F16>(from));
  std::memcpy(block->codes.data(), from + 2, 32);
}

void ReadQ4_0(const std::byte* from, Block* block) {
  block->scales[0] = static_cast<float>(Read<F16>(from));
  for (size_t i = 0; i < 16; ++i) {
    const uint8_t pair = Byte(from[2 + i]);
    block->codes[i] = static_cast<int8_t>(pair & 15);
    block->codes[i + 16] = static_cast<int8_t>(pair >> 4);
  }
}

// Eight groups; twelve bytes hold their six-bit scales and minima.
void ReadQ4_K(const std::byte* from, Block* block) {
  const auto d = static_cast<float>(Read<F16>(from));
  const auto dmin = static_cast<float>(Read<F16>(from + 2));
  const std::byte *packed = from + 4, *quants = from + 16;
  for (size_t g = 0; g < 8; ++g) {
    int scale, min;
    if (g < 4) {
      scale = Byte(packed[g]) & 63;
      min = Byte(packed[g + 4]) & 63;
    } else {
      scale = (Byte(packed[g + 4]) & 15) | (Byte(packed[g - 4]) >> 6 << 4);
      min = (Byte(packed[g + 4]) >> 4) | (Byte(packed[g]) >> 6 << 4);
    }
    block->scales[g] = d * static_cast<float>(scale);
    block->mins[g] = dmin * static_cast<float>(min);
    for (size_t i = 0; i < 32; ++i) {
      const uint8_t pair = Byte(quants[g / 2 * 32 + i]);
      block->codes[g * 32 + i] = static_cast<int8_t>(g % 2 == 0 ? pair & 15 : pair >> 4);
    }
  }
}

// Two halves of 128: low four bits, high two bits, a scale for 16.
void ReadQ6_K(const std::byte* from, Block* block) {
  const auto d = static_cast<float>(Read<F16>(from + 208));
  for (size_t g = 0; g < 16; ++g) {
    block->scales[g] = d * static_cast<float>(std::to_integer<int8_t>(from[192 + g]));
  }
  for (size_t half = 0; half < 2; ++half) {
    const std::byte *low = from + half * 64, *high = from + 128 + half * 32;
    for (size_t i = 0; i < 128; ++i) {
      const uint8_t four = Byte(low[i % 64]), two = Byte(high[i % 32]);
      const int code = (i < 64 ? four & 15 : four >> 4) | (two >> (i / 32 * 2) & 3) << 4;
      block->codes[half * 128 + i] = static_cast<int8_t>(code - 32);
    }
  }
}

void ReadBlock(GgufType type, const std::byte* from, Block* block) {
  switch (type) {
    case GgufType::kQ8_0:
      return ReadQ8_0(from, block);
    case GgufType::kQ4_0:
      return ReadQ4_0(from, block);
    case GgufType::kQ4_K:
      return ReadQ4_K(from, block);
    case GgufType::kQ6_K:
      return ReadQ6_K(from, block);
    default:
      break;
  }
}

}  // namespace

QuantizedRows EmptyGgufRows(Context& ctx, GgufType type, int64_t n, int64_t k) {
  const Kind kind = KindOf(type);
  QuantizedRows rows{.n = n, .k = k, .bits = kind.bits, .group = kind.group, .zero = kind.zero};
  rows.codes = ctx.Empty({n, k}, DType::kI8);
  rows.scales = ctx.Empty({n, rows.groups()}, DType::kF16);
  if (kind.mins) rows.mins = ctx.Empty({n, rows.groups()}, DType::kF16);
  return rows;
}

void UnpackGgufRow(GgufType type, const std::byte* row, int64_t to, QuantizedRows* rows) {
  const GgufBlock block = BlockOf(type);
  const int64_t groups = block.elements / rows->group;
  int8_t* codes = rows->codes.data<int8_t>() + to * rows->k;
  F16* scales = rows->scales.data<F16>() + to * rows->groups();
  F16* mins = rows->mins.defined() ? rows->mins.data<F16>() + to * rows->groups() : nullptr;
  Block read;
  for (int64_t k = 0; k < rows->k; k += block.elements, row += block.bytes) {
    ReadBlock(type, row, &read);
    std::memcpy(codes + k, read.codes.data(), static_cast<size_t>(block.elements));
    for (int64_t g = 0; g < groups; ++g) {
      *scales++ = F16(read.scales[static_cast<size_t>(g)]);
      if (mins != nullptr) *mins++ = F16(read.mins[static_cast<size_t>(g)]);
    }
  }
}

void GgufRowToFloats(GgufType type, const std::byte* row, int64_t k, float* to) {
  const GgufBlock block = BlockOf(type);
  if (block.elements == 1) {
    for (int64_t i = 0; i < k; ++i, row += block.bytes) {
      to[i] = type == GgufType::kF32   ? Read<float>(row)
              : type == GgufType::kF16 ? static_cast<float>(Read<F16>(row))
                                       : static_cast<float>(Read<BF16>(row));
    }
    return;
  }
  const Kind kind = KindOf(type);
  Block read;
  for (int64_t at = 0; at < k; at += block.elements, row += block.bytes) {
    ReadBlock(type, row, &read);
    for (int64_t i = 0; i < block.elements; ++i) {
      const auto g = static_cast<size_t>(i / kind.group);
      const int code = read.codes[static_cast<size_t>(i)] - kind.zero;
      to[at + i] = static_cast<float>(code) * read.scales[g] - (kind.mins ? read.mins[g] : 0.0f);
    }
  }
}

}  // namespace cadre
