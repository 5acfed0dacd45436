#include "core/ops/gemm_quant.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/ops/gemm.h"
#include "core/ops/op_check.h"
#include "core/ops/quantize.h"
#include "core/random.h"
#include "core/tape.h"

namespace cadre::ops {
namespace {

// Shapes of codes: the two formats of quantization at load, and those that files bring.
struct Codes {
  const char* name;
  int bits;
  int64_t group;  // 0: the row
  int zero;
  bool mins;
};

constexpr Codes kCodes[] = {{"int8", 8, 0, 0, false},        {"int8_groups", 8, 32, 0, false},
                            {"int8_of_16", 8, 16, 0, false}, {"int4", 4, 32, 8, false},
                            {"int4_of_64", 4, 64, 8, false}, {"int4_mins", 4, 32, 0, true},
                            {"int8_wide", 8, 512, 0, false}};

class QuantTest : public ::testing::Test {
 protected:
  Tensor Normal(const Shape& shape, uint64_t stream, DType dtype = DType::kBF16) {
    Tensor x = ctx_.Empty(shape, DType::kF32);
    RandomKey key(3, "quant_test");
    for (int64_t i = 0; i < x.numel(); ++i) {
      x.data<float>()[i] = static_cast<float>(key.Normal(static_cast<uint64_t>(i), stream));
    }
    return CastTensor(ctx_, x, dtype);
  }

  QuantizedRows Random(const Codes& codes, int64_t n, int64_t k) {
    QuantizedRows rows{
        .n = n, .k = k, .bits = codes.bits, .group = codes.group, .zero = codes.zero};
    RandomKey key(5, codes.name);
    rows.codes = ctx_.Empty({n, k}, DType::kI8);
    for (int64_t i = 0; i < n * k; ++i) {
      const uint64_t draw = key.U64(static_cast<uint64_t>(i));
      rows.codes.data<int8_t>()[i] =
          codes.bits == 4 ? static_cast<int8_t>(draw % 16) : static_cast<int8_t>(draw % 256);
    }
    const DType dtype = codes.group == 0 ? DType::kF32 : DType::kF16;
    rows.scales = Normal({n, rows.groups()}, 1, dtype);
    if (codes.mins) rows.mins = Normal({n, rows.groups()}, 2, dtype);
    return rows;
  }

  Tensor Product(const Tensor& a, const std::vector<QuantizedMatrix>& b, Bf16Kernel kernel,
                 DType out, const Tensor& bias = {}) {
    int64_t n = 0;
    for (const QuantizedMatrix& run : b) n += run.n;
    Tensor c = ctx_.Empty({a.dim(0), n}, out);
    QuantGemm(ctx_, {.a = {a.raw(), a.dim(0)}, .b = b, .c = c, .bias = bias, .kernel = kernel});
    return c;
  }

  HostAllocator allocator_;
  Context ctx_{.allocator = &allocator_, .threads = 2};
};

class QuantKernels : public QuantTest, public ::testing::WithParamInterface<Bf16Kernel> {};

TEST_P(QuantKernels, AgreeWithDoublePrecision) {
  for (const Codes& codes : kCodes) {
    for (auto [n, k] : {std::pair<int64_t, int64_t>{1, 32}, {33, 99}, {80, 640}, {200, 1024}}) {
      const std::vector<QuantizedMatrix> w = {PackQuantized(ctx_, {Random(codes, n, k)})};
      const Tensor bias = Normal({n}, 3);
      for (int64_t m : {1, 3, 4, 5, 17, 200}) {
        const Tensor a = Normal({m, k}, 4);
        Tensor want = ctx_.Empty({m, n}, DType::kF64);
        Gemm(ctx_, {.a = CastTensor(ctx_, a, DType::kF64),
                    .b = Dequantize(ctx_, w, DType::kF64),
                    .c = want,
                    .transpose_b = true,
                    .bias = CastTensor(ctx_, bias, DType::kF64)});
        EXPECT_LT(RelativeError(Product(a, w, GetParam(), DType::kF32, bias), want), 2e-6)
            << codes.name << " " << m << " x " << n << " x " << k;
      }
    }
  }
}

// The one-forward contract, in fp32: rounding to bf16 would hide nearly all of a difference.
TEST_P(QuantKernels, ARowHasTheSameBitsInAnyCompany) {
  for (const Codes& codes : kCodes) {
    for (auto [n, k] : {std::pair<int64_t, int64_t>{100, 99}, {256, 1056}}) {
      const std::vector<QuantizedMatrix> w = {PackQuantized(ctx_, {Random(codes, n, k)})};
      const Tensor a = Normal({300, k}, 4);
      const Tensor whole = Product(a, w, GetParam(), DType::kF32);
      for (int64_t rows : {1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 26, 33, 129}) {
        for (int threads : {1, 2}) {
          ctx_.threads = threads;
          const int64_t begin = 300 - rows;
          EXPECT_TRUE(SameBits(Product(a.Narrow(begin, rows), w, GetParam(), DType::kF32),
                               whole.Narrow(begin, rows)))
              << codes.name << ", " << rows << " rows, k " << k << ", " << threads << " threads";
        }
      }
    }
  }
}

// A fused matrix whose parts a file keeps differently.
TEST_P(QuantKernels, RunsOfRowsLieSideBySide) {
  std::vector<QuantizedMatrix> all;
  const Tensor a = Normal({7, 96}, 4);
  std::vector<Tensor> apart;
  for (int64_t n : {48, 20, 64}) {
    all.push_back(PackQuantized(ctx_, {Random(kCodes[all.size() * 2 + 1], n, 96)}));
    apart.push_back(Product(a, {all.back()}, GetParam(), DType::kF32));
  }
  for (int threads : {1, 2}) {  // one goes from run to run
    ctx_.threads = threads;
    const Tensor together = Product(a, all, GetParam(), DType::kF32);
    for (int64_t m = 0; m < 7; ++m) {
      const float* of_row = together.data<float>() + m * 132;
      for (const Tensor& part : apart) {
        const int64_t n = part.dim(1);
        EXPECT_EQ(std::memcmp(of_row, part.data<float>() + m * n, n * sizeof(float)), 0)
            << "row " << m << ", " << threads << " threads";
        of_row += n;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, QuantKernels, ::testing::ValuesIn(MachineBf16Kernels()));

double ErrorOf(const Tensor& w, const std::vector<QuantizedMatrix>& quantized, Context& ctx) {
  return RelativeError(Dequantize(ctx, quantized, DType::kF64), CastTensor(ctx, w, DType::kF64));
}

TEST_F(QuantTest, ErrorsOfTheFormats) {
  const Tensor w = Normal({256, 1024}, 7);
  const double eight = ErrorOf(w, QuantizeParam(ctx_, w, WeightFormat::kInt8)[0], ctx_);
  const double four = ErrorOf(w, QuantizeParam(ctx_, w, WeightFormat::kInt4)[0], ctx_);
  RecordProperty("int8", std::to_string(eight));
  RecordProperty("int4", std::to_string(four));
  EXPECT_LT(eight, 0.01);
  EXPECT_LT(four, 0.085);
}

TEST_F(QuantTest, FloatsOfTheGridComeBack) {
  Tensor w = ctx_.Empty({20, 64}, DType::kBF16);
  for (int64_t i = 0; i < w.numel(); ++i) {
    w.data<BF16>()[i] = BF16(static_cast<float>(i % 2 == 0 ? -8 : i % 15 - 7) * 0.25f);
  }
  const auto back = Dequantize(ctx_, QuantizeParam(ctx_, w, WeightFormat::kInt4)[0], DType::kBF16);
  EXPECT_TRUE(SameBits(back, w));
}

TEST_F(QuantTest, ZerosAndRowsApart) {
  Tensor w = Normal({40, 96}, 8);
  std::fill_n(w.data<BF16>() + 96, 96, BF16(0.0f));
  for (WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const Tensor whole = Dequantize(ctx_, QuantizeParam(ctx_, w, format)[0], DType::kF32);
    const QuantizedMatrix cut = PackQuantized(ctx_, {QuantizeRows(ctx_, w.Narrow(0, 7), format),
                                                     QuantizeRows(ctx_, w.Narrow(7, 33), format)});
    EXPECT_TRUE(SameBits(Dequantize(ctx_, {cut}, DType::kF32), whole));
    for (int64_t k = 0; k < 96; ++k) EXPECT_EQ(whole.data<float>()[96 + k], 0.0f);
  }
}

// Floats in panels alone: the same bits as from the weights as they were, and none lost.
TEST_F(QuantTest, PanelsMultiplyAsTheMatrixDoes) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    ParameterStore store;
    const ParamId id = store.Add({.name = "w", .shape = {3, 37, 70}});
    store.KeepQuantized([](const ParamSpec&) { return true; });
    store.Allocate(*ctx_.allocator, dtype, {.quantize = [this](const Tensor& w) {
      return QuantizeParam(ctx_, w, WeightFormat::kPanels);
    }});
    ctx_.parameters = &store;
    const Tensor w = Normal({3, 37, 70}, 1, dtype), x = Normal({5, 70}, 2, dtype);
    const Tensor bias = Normal({37}, 3, dtype);
    {
      LeasedWeight lease(ctx_, id, Lease::kWrite);
      std::memcpy(lease.tensor().raw(), w.raw(), w.bytes());
    }
    for (int64_t e = 0; e < 3; ++e) {
      const Tensor matrix = w.Narrow(e, 1).Reshape({37, 70});
      const Tensor expected = ctx_.Empty({5, 37}, dtype), got = ctx_.Empty({5, 37}, dtype);
      Gemm(ctx_, {.a = x, .b = matrix, .c = expected, .transpose_b = true, .bias = bias});
      ASSERT_TRUE(
          QuantizedWeightGemm(ctx_, {.param = id, .expert = e, .a = x, .c = got, .bias = bias}));
      EXPECT_EQ(std::memcmp(got.raw(), expected.raw(), got.bytes()), 0) << Name(dtype) << e;
      const Tensor back = Dequantize(ctx_, (*store.quantized(id))[static_cast<size_t>(e)], dtype);
      EXPECT_EQ(std::memcmp(back.raw(), matrix.raw(), back.bytes()), 0) << Name(dtype) << e;
    }
    // Panels of K and N rounded up, and nothing beside them.
    EXPECT_EQ(store.quantized_bytes(), size_t{3 * 48} * (dtype == DType::kBF16 ? 96 * 2 : 70 * 4));
    ctx_.parameters = nullptr;
  }
}

}  // namespace
}  // namespace cadre::ops
