// What the ranks of a test of communicators bring, and what they should get.
#pragma once

#include <cstring>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "parallel/reduce.h"

namespace cadre {

inline std::vector<int> All(int size) {
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

// What `rank` brings: a pure function, so that every rank can work out what the others brought.
inline Tensor Brought(Allocator& allocator, int rank, int64_t numel, DType dtype, int salt = 0) {
  Tensor tensor = Tensor::Empty(allocator, {numel}, dtype);
  uint64_t state = static_cast<uint64_t>(1000 * salt + rank);
  for (int64_t i = 0; i < numel; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    const float value = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31F;
    switch (dtype) {
      case DType::kF64:
        tensor.data<double>()[i] = value;
        break;
      case DType::kF32:
        tensor.data<float>()[i] = value;
        break;
      case DType::kBF16:
        tensor.data<BF16>()[i] = BF16(value);
        break;
      default:
        tensor.data<int32_t>()[i] = static_cast<int32_t>(value * 1e9F);
    }
  }
  return tensor;
}

inline Tensor Expected(Allocator& allocator, int size, int64_t numel, DType dtype, ReduceOp op,
                       int salt = 0) {
  std::vector<Tensor> brought;
  std::vector<const std::byte*> sources;
  for (int r = 0; r < size; ++r) {
    brought.push_back(Brought(allocator, r, numel, dtype, salt));
    sources.push_back(brought.back().raw());
  }
  Tensor out = Tensor::Empty(allocator, {numel}, dtype);
  ReduceInRankOrder(dtype, op, sources, numel, out.raw());
  return out;
}

inline void ExpectSameBits(const Tensor& a, const Tensor& b) {
  ASSERT_EQ(a.bytes(), b.bytes());
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.bytes()), 0);
}

}  // namespace cadre
