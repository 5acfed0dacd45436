#include "core/ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

RopeTable Table(const RopeParams& params, int64_t positions = 64) {
  auto table = RopeTable::Build(params, positions);
  CADRE_CHECK(table.ok(), "{}", Message(table.status()));
  return *std::move(table);
}

void CheckRope(const RopeTable& table, int64_t dh, int64_t offset) {
  CheckOp({.inputs = {{5, 3, dh}}, .op = [&](Context& ctx, std::span<const Var> x, auto) {
             std::vector<int32_t> positions = {0, 1, 63, 7, 1};
             return Rope(ctx, x[0],
                         {Tensor::Of<int32_t>(*ctx.allocator, {5}, positions), &table, offset});
           }});
}

TEST(Rope, HalfSplit) {
  CheckRope(Table({.rotary_dim = 16}), 16, 0);
  CheckRope(Table({.rotary_dim = 74}), 80, 0);
}

TEST(Rope, InterleavedAtAnOffset) {
  RopeParams params{.pairing = RopePairing::kInterleaved, .rotary_dim = 16};
  CheckRope(Table(params), 16, 0);
  params.rotary_dim = 22;
  CheckRope(Table(params), 40, 13);
}

TEST(RopeTable, DefaultAndLinear) {
  RopeTable plain = Table({.rotary_dim = 4, .theta = 10000});
  EXPECT_NEAR(plain.frequencies()[1], 0.01, 1e-15);
  RopeTable linear = Table({.kind = RopeKind::kLinear, .rotary_dim = 4, .factor = 4});
  EXPECT_NEAR(linear.frequencies()[0], 0.25, 1e-15);
  EXPECT_FLOAT_EQ(linear.cos(3)[0], static_cast<float>(std::cos(0.75)));
}

// Llama 3.1's numbers: short wavelengths are kept, long ones divided by 8, between them blended.
TEST(RopeTable, Llama3) {
  RopeParams params{.kind = RopeKind::kLlama3,
                    .rotary_dim = 128,
                    .theta = 500000,
                    .factor = 8,
                    .original_max_positions = 8192,
                    .low_freq_factor = 1,
                    .high_freq_factor = 4};
  RopeTable table = Table(params, 1);
  auto plain = [](int i) { return std::pow(500000.0, -2.0 * i / 128); };
  EXPECT_DOUBLE_EQ(table.frequencies()[0], 1.0);
  EXPECT_NEAR(table.frequencies()[63], plain(63) / 8, 1e-20);
  // Wavelength 2 pi / plain(32) = 4443, between 2048 and 8192.
  double smooth = (8192 * plain(32) / (2 * M_PI) - 1) / 3;
  EXPECT_NEAR(table.frequencies()[32], (1 - smooth) * plain(32) / 8 + smooth * plain(32), 1e-15);
  EXPECT_EQ(table.attention_factor(), 1.0);
}

TEST(RopeTable, Yarn) {
  RopeParams params{.kind = RopeKind::kYarn,
                    .rotary_dim = 64,
                    .theta = 10000,
                    .factor = 40,
                    .original_max_positions = 4096};
  // The ramp runs from floor(64 ln(4096 / (32 2pi)) / (2 ln 10000)) = 10 to ceil(22.51) = 23.
  RopeTable table = Table(params, 1);
  auto plain = [](int i) { return std::pow(10000.0, -2.0 * i / 64); };
  EXPECT_DOUBLE_EQ(table.frequencies()[10], plain(10));
  EXPECT_NEAR(table.frequencies()[23], plain(23) / 40, 1e-15);
  double ramp = 3.0 / 13;
  EXPECT_NEAR(table.frequencies()[13], plain(13) / 40 * ramp + plain(13) * (1 - ramp), 1e-15);
  EXPECT_NEAR(table.attention_factor(), 0.1 * std::log(40.0) + 1, 1e-12);

  params.mscale = 0.707;
  params.mscale_all_dim = 0.707;
  EXPECT_EQ(Table(params, 1).attention_factor(), 1.0);
  params.attention_factor = 1.25;
  EXPECT_EQ(Table(params, 1).attention_factor(), 1.25);
  EXPECT_FLOAT_EQ(Table(params, 1).cos(0)[0], 1.25f);

  params.truncate = false;
  double low = 64 * std::log(4096 / (32 * 2 * M_PI)) / (2 * std::log(10000.0));
  double high = 64 * std::log(4096 / (2 * M_PI)) / (2 * std::log(10000.0));
  ramp = (13 - low) / (high - low);
  EXPECT_NEAR(Table(params, 1).frequencies()[13], plain(13) / 40 * ramp + plain(13) * (1 - ramp),
              1e-15);
}

TEST(RopeTable, ImpossibleParametersNameTheField) {
  auto message = [](const RopeParams& params) {
    return Message(RopeTable::Build(params, 8).status());
  };
  EXPECT_EQ(message({.rotary_dim = 7}),
            "rope: rotary dimension 7, an even number above 0 is needed");
  EXPECT_NE(message({.kind = RopeKind::kLinear, .rotary_dim = 8, .factor = 0.5}).find("factor is"),
            std::string::npos);
  EXPECT_NE(message({.kind = RopeKind::kYarn, .rotary_dim = 8, .factor = 2})
                .find("original_max_position_embeddings is 0"),
            std::string::npos);
}

}  // namespace
}  // namespace cadre::ops
