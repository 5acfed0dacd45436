#include "core/ops/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/host_allocator.h"

namespace cadre::ops {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(QuantizeRows, WhatHasNoCodesIsNotHidden) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = 2};
  constexpr int64_t kRows = 40, kColumns = 96;
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    for (const float bad : {NAN, -NAN, kInfinity, -kInfinity, 1e6f}) {
      const Tensor w = ctx.Zeros({kRows, kColumns}, DType::kF32);
      for (int64_t i = 0; i < w.numel(); ++i) w.data<float>()[i] = static_cast<float>(i % 7) - 3;
      EXPECT_TRUE(CheckScales("w", QuantizeRows(ctx, w, format).scales).ok());
      EXPECT_TRUE(CheckScales("w", QuantizeParam(ctx, w, format)).ok());
      w.data<float>()[17 * kColumns + 70] = bad;
      // What is finite fits a scale in f32, not one in f16.
      const bool fits = std::isfinite(bad) && format == WeightFormat::kInt8;
      const absl::Status rows = CheckScales("w", QuantizeRows(ctx, w, format).scales);
      EXPECT_EQ(rows.ok(), fits) << bad;
      EXPECT_EQ(CheckScales("w", QuantizeParam(ctx, w, format)), rows);
      if (fits) continue;
      EXPECT_EQ(Message(rows), "w: a weight is no finite number, or too large for its codes");
      // The other groups are as they would be.
      const QuantizedParam param = QuantizeParam(ctx, w, format);
      std::vector<double> row(kColumns);
      DequantizeRow(param[0][0], 17, row.data());
      EXPECT_TRUE(std::isnan(row[70]));
      EXPECT_EQ(std::isnan(row[0]), format == WeightFormat::kInt8);
      DequantizeRow(param[0][0], 16, row.data());
      EXPECT_NEAR(row[70], w.data<float>()[16 * kColumns + 70], 0.5);
    }
  }
}

TEST(QuantizeParam, MinimaAreLookedAtLikeScales) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = 1};
  QuantizedRows rows = QuantizeRows(ctx, ctx.Zeros({16, 64}, DType::kF32), WeightFormat::kInt4);
  rows.mins = ctx.Zeros(rows.scales.shape(), DType::kF16);
  EXPECT_TRUE(CheckScales("w", QuantizedParam{{PackQuantized(ctx, {rows})}}).ok());
  rows.mins.data<F16>()[3] = static_cast<F16>(kInfinity);
  EXPECT_FALSE(CheckScales("w", QuantizedParam{{PackQuantized(ctx, {rows})}}).ok());
}

TEST(QuantizeParam, FloatsAreNoCodes) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = 1};
  const Tensor w = ctx.Zeros({16, 32}, DType::kF32);
  w.data<float>()[3] = NAN;
  EXPECT_TRUE(CheckScales("w", QuantizeParam(ctx, w, WeightFormat::kPanels)).ok());
}

}  // namespace
}  // namespace cadre::ops
