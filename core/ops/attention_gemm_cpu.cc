#include "core/ops/attention_kernels.h"
#include "core/ops/kv_quantize.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/attention_gemm_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

using DG = hn::CappedTag<float, 16>;
using VG = hn::Vec<DG>;

// One row-step of B against kRows rows of A; lanes are columns.
template <int kRows>
HWY_INLINE void Step(const float* a, int64_t lda, const float* b, VG* sum) {
  const VG value = hn::LoadU(DG(), b);
  for (int r = 0; r < kRows; ++r) {
    sum[r] = hn::MulAdd(hn::Set(DG(), a[r * lda]), value, sum[r]);
  }
}

template <int kRows>
HWY_INLINE void Step(const float* a, int64_t lda, const BF16* b, VG* sum) {
  const hn::RebindToUnsigned<DG> du;
  const auto pair = hn::LoadU(du, reinterpret_cast<const uint32_t*>(b));
  const VG even = hn::BitCast(DG(), hn::ShiftLeft<16>(pair));
  const VG odd = hn::BitCast(DG(), hn::And(pair, hn::Set(du, 0xffff0000u)));
  for (int r = 0; r < kRows; ++r) {
    sum[r] = hn::MulAdd(hn::Set(DG(), a[r * lda]), even, sum[r]);
    sum[r] = hn::MulAdd(hn::Set(DG(), a[r * lda + 1]), odd, sum[r]);
  }
}

template <typename B, int kRows>
void Rows(const AttentionGemm& g, int64_t row) {
  constexpr int64_t kPack = sizeof(B) == 2 ? 2 : 1;
  const auto* a = static_cast<const float*>(g.a) + row * g.lda;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(DG()));
  for (int64_t j = 0; j < g.n; j += lanes) {
    const auto* b = static_cast<const B*>(g.b) + j / 16 * g.b_panel + j % 16 * kPack;
    float* c = g.c + row * g.ldc + j;
    VG sum[kRows];
    for (int r = 0; r < kRows; ++r) {
      sum[r] = g.accumulate ? hn::LoadU(DG(), c + r * g.ldc) : hn::Zero(DG());
    }
    for (int64_t i = 0; i < g.k; i += kPack) {
      Step<kRows>(a + i, g.lda, b + i / kPack * g.b_row, sum);
    }
    for (int r = 0; r < kRows; ++r) hn::StoreU(sum[r], DG(), c + r * g.ldc);
  }
}

template <typename B>
HWY_INLINE void Multiply(const AttentionGemm& g) {
  int64_t row = 0;
  for (; row + 8 <= g.m; row += 8) Rows<B, 8>(g, row);
  for (; row < g.m; ++row) Rows<B, 1>(g, row);
}

void MultiplyF32(const AttentionGemm& g) { Multiply<float>(g); }
void MultiplyMixed(const AttentionGemm& g) { Multiply<BF16>(g); }

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(MultiplyF32);
HWY_EXPORT(MultiplyMixed);

void AttentionGemmF32(const AttentionGemm& gemm) { HWY_DYNAMIC_DISPATCH(MultiplyF32)(gemm); }
void AttentionGemmMixed(const AttentionGemm& gemm) { HWY_DYNAMIC_DISPATCH(MultiplyMixed)(gemm); }

AttentionBackend AttentionBackendFor(DType dtype, bool pairs, Bf16Kernel kernel) {
  constexpr auto kNothing = +[] {};
  AttentionBackend backend{.unpack = UnpackKv,
                           .gemm = pairs ? AttentionGemmMixed : AttentionGemmF32,
                           .begin = kNothing,
                           .end = kNothing};
  if (dtype != DType::kBF16 || kernel == Bf16Kernel::kSimd) return backend;
  backend.bf16 = true;
  backend.unpack = UnpackKvAvx512;
  backend.gemm = AttentionAvx512Gemm;
  if (kernel == Bf16Kernel::kAmx) {
    backend.gemm = AttentionAmxGemm;
    backend.begin = AttentionAmxBegin;
    backend.end = AttentionAmxEnd;
  }
  return backend;
}

}  // namespace cadre::ops
#endif
