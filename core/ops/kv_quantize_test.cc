#include "core/ops/kv_quantize.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/host_allocator.h"
#include "core/ops/bf16_kernel.h"
#include "core/random.h"

namespace cadre::ops {
namespace {

constexpr KvQuantization kKinds[] = {KvQuantization::kInt8, KvQuantization::kInt4};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Codes {
  std::vector<int8_t> codes;
  std::vector<BF16> scales;

  Codes(KvQuantization kind, const std::vector<float>& x, int64_t group)
      : codes(x.size()), scales(x.size() / static_cast<size_t>(group)) {
    QuantizeKv({.quantization = kind,
                .x = x.data(),
                .groups = static_cast<int64_t>(scales.size()),
                .group = group,
                .codes = codes.data(),
                .scales = scales.data()});
  }
  float scale(size_t g) const { return static_cast<float>(scales[g]); }
};

float AwayFromZero(double x) {
  BF16 rounded(static_cast<float>(x));
  if (std::abs(static_cast<double>(rounded)) < std::abs(x)) ++rounded.bits;
  return static_cast<float>(rounded);
}

// The rule in plain words.
void ExpectRule(KvQuantization kind, const std::vector<float>& x, int64_t group) {
  const Codes got(kind, x, group);
  for (size_t g = 0; g < got.scales.size(); ++g) {
    const float* row = x.data() + static_cast<int64_t>(g) * group;
    float widest = row[0];
    for (int64_t i = 0; i < group; ++i) {
      const bool wider = std::abs(row[i]) > std::abs(widest);
      if (wider || (row[i] == -widest && row[i] < 0)) widest = row[i];
    }
    const bool wide = kind == KvQuantization::kInt8;
    const float scale =
        AwayFromZero(wide ? std::abs(widest) / 127.0f : static_cast<double>(widest / -8.0f));
    ASSERT_EQ(got.scale(g), scale) << g;
    for (int64_t i = 0; i < group; ++i) {
      const double code = scale == 0 ? 0.0
                                     : std::clamp<double>(std::nearbyint(row[i] / scale),
                                                          wide ? -127 : -8, wide ? 127 : 7);
      ASSERT_EQ(got.codes[g * static_cast<size_t>(group) + static_cast<size_t>(i)], code)
          << row[i] << " by " << scale;
    }
  }
}

TEST(KvQuantize, FollowsItsRule) {
  const RandomKey key(5, "kv_quantize_test");
  for (KvQuantization kind : kKinds) {
    for (int exponent : {-120, -20, -3, 0, 5, 100}) {
      std::vector<float> x(320);
      for (size_t i = 0; i < x.size(); ++i) {
        x[i] = std::ldexp(static_cast<float>(key.Normal(i, 1)), exponent);
      }
      ExpectRule(kind, x, 32);
      ExpectRule(kind, x, 320);
    }
  }
}

TEST(KvQuantize, TiesZerosAndExtremes) {
  constexpr float kMost = std::numeric_limits<float>::max();
  constexpr float kLeast = std::numeric_limits<float>::denorm_min();
  for (KvQuantization kind : kKinds) {
    std::vector<float> x(32, 0.0f);
    ExpectRule(kind, x, 32);
    x[3] = kLeast;
    ExpectRule(kind, x, 32);
    x[7] = -2.0f;
    x[9] = 2.0f;
    x[11] = 0.125f;  // halves of a step go to the even code
    x[12] = 0.375f;
    x[13] = -0.375f;
    ExpectRule(kind, x, 32);
    x[20] = -kMost;
    x[21] = kMost;
    ExpectRule(kind, x, 32);
  }
}

TEST(KvQuantize, WhatIsNotFiniteIsNotHidden) {
  for (KvQuantization kind : kKinds) {
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
      std::vector<float> x(64, 1.0f);
      x[40] = bad;
      const Codes got(kind, x, 32);
      EXPECT_FALSE(std::isnan(got.scale(0)));
      EXPECT_TRUE(std::isnan(got.scale(1)));
      for (size_t i = 32; i < 64; ++i) EXPECT_EQ(got.codes[i], 0);
    }
  }
}

// What comes back is within half a step; a step more where int4's other end is as wide.
TEST(KvQuantize, ErrsByHalfAStep) {
  const RandomKey key(6, "kv_quantize_test");
  std::vector<float> x(4096);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(key.Normal(i));
  for (KvQuantization kind : kKinds) {
    const Codes got(kind, x, 32);
    for (size_t i = 0; i < x.size(); ++i) {
      const float scale = got.scale(i / 32), back = scale * got.codes[i];
      const bool clipped = kind == KvQuantization::kInt4 && got.codes[i] == 7;
      EXPECT_LE(std::abs(back - x[i]), std::abs(scale) * (clipped ? 1.001f : 0.501f));
    }
  }
}

struct Pool {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = 3};
  KvLayout layout;
  std::vector<std::byte> bytes;
  std::vector<int64_t> slots;
  Tensor k, v;

  Pool(KvQuantization kind, DType dtype, int block_size, int tokens) {
    layout = {dtype, 2, 80, 48, block_size, kind};
    const int64_t blocks = tokens / block_size + 2;
    bytes.assign(static_cast<size_t>(blocks) * KvBlockBytes(layout), std::byte{0xa5});
    const RandomKey key(7, "kv_quantize_test");
    k = ctx.Empty({tokens, 2, 80}, dtype);
    v = ctx.Empty({tokens, 2, 48}, dtype);
    VisitFloat(dtype, [&](auto t) {
      using T = decltype(t);
      for (int64_t i = 0; i < k.numel(); ++i) {
        k.data<T>()[i] = static_cast<T>(static_cast<float>(key.Normal(i, 1)));
      }
      for (int64_t i = 0; i < v.numel(); ++i) {
        v.data<T>()[i] = static_cast<T>(static_cast<float>(key.Normal(i, 2)));
      }
    });
    for (int64_t t = 0; t < tokens; ++t) slots.push_back(t + 5);
  }

  // Tokens [begin, end) at once.
  void Write(int64_t begin, int64_t end) {
    WriteKv(ctx, {k.Narrow(begin, end - begin), v.Narrow(begin, end - begin),
                  std::span(slots).subspan(begin, end - begin), bytes.data(), layout});
  }
};

TEST(KvQuantize, APoolGivesBackWhatWasQuantized) {
  for (KvQuantization kind : kKinds) {
    for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
      for (int block_size : {16, 48, 64}) {
        Pool pool(kind, dtype, block_size, 70);
        pool.Write(0, 70);
        const KvView view{.data = pool.bytes.data(), .layout = pool.layout};
        VisitFloat(dtype, [&](auto t) {
          using T = decltype(t);
          auto check = [&](const T* x, int64_t dim, int64_t pad, int64_t group, auto read) {
            std::vector<float> row(static_cast<size_t>(pad), 0.0f);
            for (int64_t d = 0; d < dim; ++d) row[d] = static_cast<float>(x[d]);
            const Codes want(kind, row, group);
            for (int64_t d = 0; d < dim; ++d) {
              ASSERT_EQ(read(d), want.codes[d] * static_cast<double>(want.scale(d / group))) << d;
            }
          };
          for (int64_t i = 0; i < 70; ++i) {
            for (int64_t h = 0; h < 2; ++h) {
              const int64_t slot = pool.slots[i] % block_size;
              const std::byte* head = view.Head(pool.slots[i] / block_size, h);
              const KvLayout& l = pool.layout;
              check(pool.k.data<T>() + (i * 2 + h) * 80, 80, l.key_pad(),
                    l.key_pad() / l.key_groups(),
                    [&](int64_t d) { return KvKey(l, head, slot, d); });
              check(pool.v.data<T>() + (i * 2 + h) * 48, 48, l.value_pad(),
                    l.value_pad() / l.value_groups(),
                    [&](int64_t d) { return KvValue(l, head, slot, d); });
            }
          }
        });
      }
    }
  }
}

TEST(KvQuantize, BytesDoNotDependOnChunksOrThreads) {
  for (KvQuantization kind : kKinds) {
    Pool whole(kind, DType::kBF16, 16, 90), parts(kind, DType::kBF16, 16, 90);
    whole.Write(0, 90);
    parts.ctx.threads = 1;
    for (int64_t begin = 0; begin < 90; begin += 7) {
      parts.Write(begin, std::min<int64_t>(90, begin + 7));
    }
    EXPECT_EQ(whole.bytes, parts.bytes);
  }
}

TEST(KvQuantize, KernelsUnpackAlike) {
  constexpr int64_t kCount = 2048;
  std::vector<std::byte> codes(kCount);
  for (int64_t i = 0; i < kCount; ++i) codes[i] = static_cast<std::byte>(i * 37 + i / 256);
  for (std::byte& code : codes) {
    if (code == std::byte{0x80}) code = std::byte{1};  // no code of int8
  }
  for (KvQuantization kind : kKinds) {
    // One head of 64 keys of 32 elements, whose order is that of codes.
    const KvLayout layout{DType::kBF16, 1, 32, 32, 64, kind};
    std::vector<BF16> portable(kCount), fast(kCount);
    UnpackKv(kind, codes.data(), kCount, portable.data());
    std::vector<std::byte> head(static_cast<size_t>(layout.head_bytes()));
    std::memcpy(head.data(), codes.data(), static_cast<size_t>(layout.bytes_of(kCount)));
    std::fill_n(reinterpret_cast<BF16*>(head.data() + layout.key_scales_at()), 64, BF16(1.0f));
    for (int64_t slot = 0; slot < 64; ++slot) {
      for (int64_t d = 0; d < 32; ++d) {
        ASSERT_EQ(static_cast<double>(portable[layout.KeyOffset(slot, d)]),
                  KvKey(layout, head.data(), slot, d));
      }
    }
    if (MachineBf16Kernel() == Bf16Kernel::kSimd) continue;
    UnpackKvAvx512(kind, codes.data(), kCount, fast.data());
    EXPECT_EQ(0, std::memcmp(portable.data(), fast.data(), kCount * sizeof(BF16)));
  }
}

TEST(KvQuantize, TakesTheBytesItSays) {
  KvLayout layout{DType::kBF16, 8, 128, 128, 64};
  EXPECT_EQ(KvBlockBytes(layout), 8 * 64 * 512);
  layout.quantization = KvQuantization::kInt8;
  EXPECT_EQ(KvBlockBytes(layout), 8 * 64 * (256 + 4));
  layout.quantization = KvQuantization::kInt4;
  EXPECT_EQ(KvBlockBytes(layout), 8 * 64 * (128 + 16));
}

}  // namespace
}  // namespace cadre::ops
