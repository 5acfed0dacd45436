#include "core/ops/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/ops/op_check.h"
#include "core/random.h"

namespace cadre::ops {
namespace {

class GemmTest : public ::testing::Test {
 protected:
  Tensor Random(const Shape& shape, DType dtype, uint64_t stream) {
    Tensor x = ctx_.Empty(shape, DType::kF32);
    RandomKey key(11, "gemm_test");
    for (int64_t i = 0; i < x.numel(); ++i) {
      x.data<float>()[i] = static_cast<float>(key.Uniform(i, stream) - 0.5);
    }
    return CastTensor(ctx_, x, dtype);
  }

  Tensor Product(int threads, GemmArgs args, const Shape& c, DType out) {
    ctx_.threads = threads;
    args.c = ctx_.Zeros(c, out);
    Gemm(ctx_, args);
    return args.c;
  }

  HostAllocator allocator_;
  Context ctx_{.allocator = &allocator_, .threads = 2};
};

TEST_F(GemmTest, AgreesWithDoublePrecision) {
  for (int64_t m : {1, 3, 63, 100, 1025}) {
    for (bool transpose_b : {false, true}) {
      const int64_t n = 24, k = 40;
      Tensor a = Random({m, k}, DType::kF32, 1),
             b = Random(transpose_b ? Shape{n, k} : Shape{k, n}, DType::kF32, 2);
      Tensor bias = Random({n}, DType::kF32, 3);
      Tensor want = Product(1,
                            {.a = CastTensor(ctx_, a, DType::kF64),
                             .b = CastTensor(ctx_, b, DType::kF64),
                             .transpose_b = transpose_b,
                             .bias = CastTensor(ctx_, bias, DType::kF64)},
                            {m, n}, DType::kF64);
      Tensor got = Product(2, {.a = a, .b = b, .transpose_b = transpose_b, .bias = bias}, {m, n},
                           DType::kF32);
      EXPECT_LT(RelativeError(got, want), 1e-6) << m << " " << transpose_b;
    }
  }
}

TEST_F(GemmTest, SumsOverTokensAccumulate) {
  for (int64_t tokens : {1, 31, 300, 5000}) {
    Tensor a = Random({tokens, 8}, DType::kF32, 1), b = Random({tokens, 24}, DType::kF32, 2);
    Tensor a64 = CastTensor(ctx_, a, DType::kF64), b64 = CastTensor(ctx_, b, DType::kF64);
    Tensor want = ctx_.Zeros({8, 24}, DType::kF64), got = ctx_.Zeros({8, 24}, DType::kF32);
    for (int repeat = 0; repeat < 2; ++repeat) {
      Gemm(ctx_, {.a = a64, .b = b64, .c = want, .transpose_a = true, .accumulate = true});
      Gemm(ctx_, {.a = a, .b = b, .c = got, .transpose_a = true, .accumulate = true});
    }
    EXPECT_LT(RelativeError(got, want), 3e-6) << tokens;
  }
}

// Every bf16 kernel of the machine against double precision, at edges of its blocks.
class GemmBf16 : public GemmTest, public ::testing::WithParamInterface<Bf16Kernel> {
 protected:
  // c += a b, or a^T b, on the kernel under test; c [m, n] fp32.
  Tensor OnKernel(const Tensor& a, const Tensor& b, bool transpose_a) {
    const int64_t m = a.dim(transpose_a ? 1 : 0);
    Panels panels;
    PackPanels(ctx_, b, false, panels, GetParam());
    Tensor c = ctx_.Zeros({m, b.dim(1)}, DType::kF32);
    for (int repeat = 0; repeat < 2; ++repeat) {
      PanelGemm(ctx_, {.a = {a.raw(), m, transpose_a},
                       .b = panels,
                       .c = c,
                       .accumulate = true,
                       .kernel = GetParam()});
    }
    return c;
  }
};

TEST_P(GemmBf16, AgreesWithDoublePrecision) {
  for (int64_t m : {1, 7, 8, 9, 31, 48, 127, 300}) {
    for (int64_t n : {1, 16, 33, 80}) {
      for (int64_t k : {1, 32, 99, 600}) {
        for (bool transpose_a : {false, true}) {
          Tensor a = Random(transpose_a ? Shape{k, m} : Shape{m, k}, DType::kBF16, 1);
          Tensor b = Random({k, n}, DType::kBF16, 2);
          Tensor want = ctx_.Zeros({m, n}, DType::kF64);
          for (int repeat = 0; repeat < 2; ++repeat) {
            Gemm(ctx_, {.a = CastTensor(ctx_, a, DType::kF64),
                        .b = CastTensor(ctx_, b, DType::kF64),
                        .c = want,
                        .transpose_a = transpose_a,
                        .accumulate = true});
          }
          EXPECT_LT(RelativeError(OnKernel(a, b, transpose_a), want), 1e-6)
              << m << " x " << n << " x " << k << (transpose_a ? ", transposed" : "");
        }
      }
    }
  }
}

// The one-forward contract on each kernel, into bf16 with a bias, at ragged edges of n and k.
TEST_P(GemmBf16, ARowHasTheSameBitsInAnyCompany) {
  for (auto [n, k] : {std::pair<int64_t, int64_t>{33, 99}, {80, 256}, {47, 600}, {16, 1024}}) {
    constexpr int64_t kRows = 300;
    Tensor a = Random({kRows, k}, DType::kBF16, 1), w = Random({n, k}, DType::kBF16, 2);
    Tensor bias = Random({n}, DType::kBF16, 3);
    Panels panels;
    PackPanels(ctx_, w, true, panels, GetParam());
    auto product = [&](int64_t begin, int64_t rows) {
      Tensor c = ctx_.Empty({rows, n}, DType::kBF16), part = a.Narrow(begin, rows);
      PanelGemm(ctx_,
                {.a = {part.raw(), rows}, .b = panels, .c = c, .bias = bias, .kernel = GetParam()});
      return c;
    };
    const Tensor whole = product(0, kRows);
    for (int64_t rows : {1, 2, 7, 8, 9, 13, 17, 26, 129}) {
      for (int64_t begin : {int64_t{0}, kRows - rows}) {
        EXPECT_TRUE(SameBits(product(begin, rows), whole.Narrow(begin, rows)))
            << rows << " rows from " << begin << ", n " << n << ", k " << k;
      }
    }
    const Tensor want = Product(1,
                                {.a = CastTensor(ctx_, a, DType::kF64),
                                 .b = CastTensor(ctx_, w, DType::kF64),
                                 .transpose_b = true,
                                 .bias = CastTensor(ctx_, bias, DType::kF64)},
                                {kRows, n}, DType::kF64);
    EXPECT_LT(RelativeError(whole, want), 4e-3);
  }
}

TEST_P(GemmBf16, EveryPackingGivesTheSameBytes) {
  for (bool transposed : {false, true}) {
    Tensor b = Random({47, 99}, DType::kBF16, 1);
    Panels plain, packed;
    PackPanels(ctx_, b, transposed, plain, Bf16Kernel::kSimd);
    PackPanels(ctx_, b, transposed, packed, GetParam());
    EXPECT_TRUE(SameBits(plain.data, packed.data)) << transposed;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, GemmBf16, ::testing::ValuesIn(MachineBf16Kernels()));

struct RowCase {
  int64_t n, k;
  DType in, out;
};

class GemmRows : public GemmTest, public ::testing::WithParamInterface<RowCase> {};

// The one-forward contract: a row's bits depend on that row and B alone.
TEST_P(GemmRows, ARowHasTheSameBitsInAnyCompany) {
  const auto [n, k, in, out] = GetParam();
  constexpr int64_t kRows = 2085;
  Tensor a = Random({kRows, k}, in, 1), w = Random({n, k}, in, 2);
  Tensor whole = Product(2, {.a = a, .b = w, .transpose_b = true}, {kRows, n}, out);
  ParameterStore store;
  ParamId id = store.Add({.name = "w", .shape = {n, k}});
  store.Allocate(allocator_, in, {});
  PackedWeights packed;
  Context packing = ctx_;
  packing.parameters = &store;
  packing.packed = &packed;
  const size_t row_bytes = n * SizeOf(out);
  for (int64_t rows :
       {1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 65, 100, 127, 250, 512, 700, 1024, 1500, 2085}) {
    const int64_t begin = kRows - rows;
    const std::byte* want = whole.raw() + begin * row_bytes;
    for (int threads : {1, 2}) {
      Tensor plain = Product(threads, {.a = a.Narrow(begin, rows), .b = w, .transpose_b = true},
                             {rows, n}, out);
      EXPECT_EQ(std::memcmp(plain.raw(), want, rows * row_bytes), 0)
          << rows << " rows, " << threads << " threads";
      packing.threads = threads;
      Tensor c = ctx_.Empty({rows, n}, out);
      WeightGemm(packing, {.param = id, .weight = w, .a = a.Narrow(begin, rows), .c = c});
      EXPECT_EQ(std::memcmp(c.raw(), want, rows * row_bytes), 0)
          << rows << " rows, " << threads << " threads, packed";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, GemmRows,
                         ::testing::Values(RowCase{768, 256, DType::kBF16, DType::kBF16},
                                           RowCase{2304, 768, DType::kBF16, DType::kBF16},
                                           RowCase{768, 2048, DType::kBF16, DType::kBF16},
                                           RowCase{5632, 512, DType::kBF16, DType::kBF16},
                                           RowCase{4096, 768, DType::kBF16, DType::kF32},
                                           RowCase{100, 32, DType::kBF16, DType::kBF16},
                                           RowCase{8, 768, DType::kF32, DType::kF32},
                                           RowCase{64, 768, DType::kF32, DType::kF32},
                                           RowCase{60, 256, DType::kF32, DType::kF32},
                                           RowCase{768, 768, DType::kF32, DType::kF32}));

// Weight gradients: the same bits at 1 and 2 threads, router shapes included.
TEST_F(GemmTest, WeightGradientsDoNotDependOnThreads) {
  struct Case {
    int64_t m, n;
    DType in;
  };
  for (auto [m, n, in] :
       {Case{8, 768, DType::kF32}, Case{64, 768, DType::kF32}, Case{768, 8, DType::kF32},
        Case{768, 64, DType::kF32}, Case{768, 8, DType::kBF16}, Case{768, 64, DType::kBF16},
        Case{256, 256, DType::kBF16}, Case{512, 256, DType::kBF16}, Case{384, 384, DType::kBF16},
        Case{768, 768, DType::kBF16}, Case{768, 2048, DType::kBF16}, Case{768, 768, DType::kF32}}) {
    Tensor a = Random({8192, m}, in, 1), b = Random({8192, n}, in, 2);
    GemmArgs args{.a = a, .b = b, .transpose_a = true, .accumulate = true};
    Tensor one = Product(1, args, {m, n}, DType::kF32), two = Product(2, args, {m, n}, DType::kF32);
    EXPECT_TRUE(SameBits(one, two)) << m << " x " << n << " " << Name(in);
  }
}

TEST_F(GemmTest, PackedCopiesFollowTheVersion) {
  ParameterStore store;
  ParamId id = store.Add({.name = "w", .shape = {32, 32}});
  store.Allocate(allocator_, DType::kF32, {});
  PackedWeights packed;
  ctx_.parameters = &store;
  ctx_.packed = &packed;
  Tensor w = store.Acquire(id, Lease::kForward), a = Random({4, 32}, DType::kF32, 1);
  Tensor c = ctx_.Zeros({4, 32}, DType::kF32);
  WeightGemm(ctx_, {.param = id, .weight = w, .a = a, .c = c});
  EXPECT_EQ(c.data<float>()[0], 0.0f);
  w.data<float>()[0] = 1.0f;
  store.WeightsChanged();
  WeightGemm(ctx_, {.param = id, .weight = w, .a = a, .c = c});
  EXPECT_EQ(c.data<float>()[0], a.data<float>()[0]);
}

}  // namespace
}  // namespace cadre::ops
