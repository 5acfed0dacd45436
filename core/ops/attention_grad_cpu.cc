#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/ops/attention_work.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/attention_grad_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/exp2-inl.h"
#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

// The gradients of one (sequence, KV head) at a time. T: of the tensors; A: of the operands.
template <typename T, typename A>
class Backward {
 public:
  static constexpr bool kPairs = sizeof(A) == 2;
  static constexpr int64_t kPack = kPairs ? 2 : 1;
  static constexpr int64_t kR = kGradTile;

  Backward(const AttentionGradArgs& args, const AttentionBackend& backend)
      : args_(args),
        backend_(backend),
        heads_(args.q.dim(1)),
        kv_heads_(args.k.dim(1)),
        group_(heads_ / kv_heads_),
        dk_(args.q.dim(2)),
        dv_(args.v.dim(2)),
        d_((dk_ + 31) / 32 * 32),
        e_((dv_ + 31) / 32 * 32),
        scale_(static_cast<float>(args.scale) * kLog2E) {}

  void Run(int64_t sequence, int64_t kv_head, const AttentionGradWork& w) const {
    const int64_t begin = args_.offsets[sequence], n = args_.offsets[sequence + 1] - begin;
    const int64_t query = args_.query_offsets[sequence];
    const int64_t queries = (args_.query_offsets[sequence + 1] - query) * group_;
    PackKeys(begin, n, kv_head, w);
    for (int64_t row = 0; row < queries; row += kR) {
      const int64_t rows = std::min(kR, queries - row);
      PackQueries(query, kv_head, row, rows, w);
      const int64_t first = w.positions[0], last = w.positions[rows - 1];
      const Keys seen{begin, n, KeysUpTo(begin, n, last)};
      const int64_t low = args_.window == 0 ? 0 : KeysUpTo(begin, n, first - args_.window);
      const int64_t tile_begin = low / kR;
      if (tile_begin * kR >= seen.end) std::fill_n(w.dqt, d_ * kR, 0.0f);
      for (int64_t tile = tile_begin; tile * kR < seen.end; ++tile) {
        Tile(seen, tile, first, last, tile > tile_begin, w);
      }
      StoreQueries(query, kv_head, row, rows, w);
    }
    StoreKeys(begin, n, kv_head, w);
  }

 private:
  static A Cast(T value) {
    if constexpr (std::is_same_v<T, A>) {
      return value;
    } else {
      return static_cast<A>(static_cast<float>(value));
    }
  }

  // Of a sequence's n keys from `begin` on, those before `end` are seen.
  struct Keys {
    int64_t begin, n, end;
  };

  // How many of a sequence's n keys from `begin` on are at most at `position`.
  int64_t KeysUpTo(int64_t begin, int64_t n, int64_t position) const {
    if (args_.key_positions.empty()) return std::clamp<int64_t>(position + 1, 0, n);
    const auto keys = args_.key_positions.subspan(begin, n);
    return std::upper_bound(keys.begin(), keys.end(), position) - keys.begin();
  }

  void LoadKeyPositions(const Keys& seen, int64_t key, int64_t keys,
                        const AttentionGradWork& w) const {
    const bool implied = args_.key_positions.empty();
    for (int64_t j = 0; j < keys; ++j) {
      w.key_positions[j] = implied            ? static_cast<int32_t>(key + j)
                           : key + j < seen.n ? args_.key_positions[seen.begin + key + j]
                                              : kNoKey;
    }
  }

  void PackKeys(int64_t begin, int64_t n, int64_t kv_head, const AttentionGradWork& w) const {
    const int64_t padded = (n + kR - 1) / kR * kR;
    A *k = reinterpret_cast<A*>(w.k), *v = reinterpret_cast<A*>(w.v);
    A* kt = reinterpret_cast<A*>(w.kt);
    for (int64_t j = 0; j < padded; ++j) {
      const int64_t row = (begin + j) * kv_heads_ + kv_head;
      CopyRow(j < n ? args_.k.data<T>() + row * dk_ : nullptr, dk_, d_, k + j * d_);
      CopyRow(j < n ? args_.v.data<T>() + row * dv_ : nullptr, dv_, e_, v + j * e_);
    }
    for (int64_t tile = 0; tile < padded; tile += kR) {
      TransposeKeys(k + tile * d_, w.q_panels, kt + tile * d_);
    }
    std::fill_n(w.dk, padded * d_, 0.0f);
    std::fill_n(w.dv, padded * e_, 0.0f);
  }

  // `scratch` holds a panel.
  void TransposeKeys(const A* k, std::byte* scratch, A* kt) const {
    if constexpr (kPairs) {
      A* panel = reinterpret_cast<A*>(scratch);
      for (int64_t j = 0; j < kR; j += 16) {
        const A* rows[16];
        for (int64_t r = 0; r < 16; ++r) rows[r] = k + (j + r) * d_;
        AttentionPanelBf16(rows, d_, d_, panel);
        AttentionTransposePanelBf16(panel, d_, kR, kt + j);
      }
    } else {
      for (int64_t d = 0; d < d_; ++d) {
        for (int64_t j = 0; j < kR; ++j) kt[d * kR + j] = k[j * d_ + d];
      }
    }
  }

  static void CopyRow(const T* from, int64_t n, int64_t padded, A* to) {
    int64_t i = 0;
    if (from != nullptr) {
      if constexpr (std::is_same_v<T, A>) {
        std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
        i = n;
      }
      for (; i < n; ++i) to[i] = Cast(from[i]);
    }
    for (; i < padded; ++i) to[i] = A();
  }

  int64_t Row(int64_t begin, int64_t kv_head, int64_t row) const {
    return (begin + row / group_) * heads_ + kv_head * group_ + row % group_;
  }

  // Of the i-th query from `begin` on, in its sequence.
  int32_t Position(int64_t begin, int64_t i) const {
    return args_.query_positions.empty() ? static_cast<int32_t>(i)
                                         : args_.query_positions[begin + i];
  }

  void PackQueries(int64_t begin, int64_t kv_head, int64_t first, int64_t rows,
                   const AttentionGradWork& w) const {
    const T *q_rows[kR], *do_rows[kR];
    for (int64_t r = 0; r < kR; ++r) {
      const bool used = r < rows;
      const int64_t row = Row(begin, kv_head, first + r);
      const T* q = used ? args_.q.data<T>() + row * dk_ : nullptr;
      const T* dout = used ? args_.dout.data<T>() + row * dv_ : nullptr;
      q_rows[r] = q;
      do_rows[r] = dout;
      w.lse[r] = used ? args_.lse.data<float>()[row] : std::numeric_limits<float>::infinity();
      w.delta[r] = used ? Dot(dout, args_.out.data<T>() + row * dv_, dv_) : 0.0f;
      w.positions[r] = used ? Position(begin, (first + r) / group_) : 0;
    }
    PackRows(q_rows, dk_, d_, reinterpret_cast<A*>(w.q_panels), reinterpret_cast<A*>(w.q_rows));
    PackRows(do_rows, dv_, e_, reinterpret_cast<A*>(w.do_panels), reinterpret_cast<A*>(w.do_rows));
  }

  // kR rows (null: zeros) as the operands [padded, kR] and [kR, padded].
  static void PackRows(const T* const* from, int64_t n, int64_t padded, A* panels, A* rows) {
    if constexpr (kPairs) {
      for (int64_t r = 0; r < kR; r += 16) {
        AttentionPanelBf16(from + r, n, padded, panels + r * padded);
      }
      for (int64_t r = 0; r < kR; r += 2) {
        AttentionPairBf16(from[r], from[r + 1], n, padded, rows + r * padded);
      }
    } else {
      for (int64_t r = 0; r < kR; ++r) PackRow(from[r], n, padded, r, panels, rows);
    }
  }

  static void PackRow(const T* from, int64_t n, int64_t padded, int64_t r, A* panels, A* rows) {
    for (int64_t i = 0; i < padded; ++i) {
      const A value = from != nullptr && i < n ? Cast(from[i]) : A();
      panels[r / 16 * 16 * padded + i * 16 + r % 16] = value;
      rows[r * padded + i] = value;
    }
  }

  static float Dot(const T* a, const T* b, int64_t n) {
    VF sum = hn::Zero(DF());
    ForLanes(
        static_cast<size_t>(n),
        [&](size_t i) HWY_ATTR { sum = hn::MulAdd(Load(a + i), Load(b + i), sum); },
        [&](size_t i, size_t m)
            HWY_ATTR { sum = hn::MulAdd(LoadN(a + i, m), LoadN(b + i, m), sum); });
    return hn::GetLane(hn::SumOfLanes(DF(), sum));
  }

  void Tile(const Keys& seen, int64_t tile, int64_t first, int64_t last, bool accumulate,
            const AttentionGradWork& w) const {
    const int64_t key = tile * kR, keys = (std::min(kR, seen.end - key) + 31) / 32 * 32;
    const A *k = reinterpret_cast<const A*>(w.k), *v = reinterpret_cast<const A*>(w.v);
    const A* kt = reinterpret_cast<const A*>(w.kt);
    const int64_t b_row = 16 * kPack;
    backend_.gemm({k + key * d_, d_, w.q_panels, b_row, 16 * d_, w.scores, kR, keys, kR, d_});
    backend_.gemm({v + key * e_, e_, w.do_panels, b_row, 16 * e_, w.dp, kR, keys, kR, e_});
    LoadKeyPositions(seen, key, keys, w);
    const bool whole = w.key_positions[keys - 1] <= first &&
                       (args_.window == 0 || w.key_positions[0] > last - args_.window);
    if constexpr (kPairs) {
      AttentionGradScoresBf16({w.scores, w.dp, w.lse, w.delta, w.positions, w.key_positions, keys,
                               scale_, args_.window, !whole, reinterpret_cast<A*>(w.p),
                               reinterpret_cast<A*>(w.ds), reinterpret_cast<A*>(w.ds_rows)});
    } else if (whole) {
      Elementwise<false>(keys, w);
    } else {
      Elementwise<true>(keys, w);
    }
    backend_.gemm(
        {w.p, kR, w.do_rows, e_ * kPack, 16 * kPack, w.dv + key * e_, e_, keys, e_, kR, true});
    backend_.gemm(
        {w.ds, kR, w.q_rows, d_ * kPack, 16 * kPack, w.dk + key * d_, d_, keys, d_, kR, true});
    backend_.gemm({kt + key * d_, kR, kPairs ? w.ds_rows : w.ds, kR * kPack, 16 * kPack, w.dqt, kR,
                   d_, kR, keys, accumulate});
  }

  // From scores and dp: p and ds.
  template <bool kMasked>
  void Elementwise(int64_t keys, const AttentionGradWork& w) const {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(DF()));
    A *p = reinterpret_cast<A*>(w.p), *ds = reinterpret_cast<A*>(w.ds);
    for (int64_t r = 0; r < kR; r += lanes) {
      for (int64_t j = 0; j < keys; ++j) {
        const int64_t at = j * kR + r;
        VF p0, ds0;
        One<kMasked>(w.key_positions[j], at, r, w, &p0, &ds0);
        Store(p0, p + at);
        Store(ds0, ds + at);
      }
    }
  }

  template <bool kMasked>
  HWY_INLINE void One(int32_t key, int64_t at, int64_t r, const AttentionGradWork& w, VF* p,
                      VF* ds) const {
    const DF df;
    VF value = Exp2(df, hn::MulSub(Load(w.scores + at), hn::Set(df, scale_), Load(w.lse + r)));
    if constexpr (kMasked) {
      const hn::RebindToSigned<DF> di;
      const auto position = hn::LoadU(di, w.positions + r);
      const auto here = hn::Set(di, key);
      auto hidden = hn::Gt(here, position);
      if (args_.window > 0) {
        const auto low = hn::Sub(position, hn::Set(di, static_cast<int32_t>(args_.window)));
        hidden = hn::Or(hidden, hn::Not(hn::Gt(here, low)));
      }
      value = hn::IfThenZeroElse(hn::RebindMask(df, hidden), value);
    }
    *p = value;
    *ds = hn::Mul(value, hn::Sub(Load(w.dp + at), Load(w.delta + r)));
  }

  void StoreQueries(int64_t begin, int64_t kv_head, int64_t first, int64_t rows,
                    const AttentionGradWork& w) const {
    const float scale = static_cast<float>(args_.scale);
    T* to[kR] = {};
    for (int64_t r = 0; r < rows; ++r) {
      to[r] = args_.dq.data<T>() + Row(begin, kv_head, first + r) * dk_;
    }
    if constexpr (kPairs) {
      for (int64_t r = 0; r < rows; r += 16) {
        AttentionStoreTransposedBf16(w.dqt + r, kR, scale, dk_, to + r);
      }
      return;
    }
    for (int64_t r = 0; r < rows; ++r) {
      T* dq = to[r];
      for (int64_t d = 0; d < dk_; ++d) dq[d] = static_cast<T>(w.dqt[d * kR + r] * scale);
    }
  }

  void StoreKeys(int64_t begin, int64_t n, int64_t kv_head, const AttentionGradWork& w) const {
    const float scale = static_cast<float>(args_.scale);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t row = (begin + j) * kv_heads_ + kv_head;
      StoreRow(w.dk + j * d_, scale, args_.dk.data<T>() + row * dk_, dk_);
      StoreRow(w.dv + j * e_, 1.0f, args_.dv.data<T>() + row * dv_, dv_);
    }
  }

  static void StoreRow(const float* from, float scale, T* to, int64_t n) {
    const VF by = hn::Set(DF(), scale);
    ForLanes(
        static_cast<size_t>(n),
        [&](size_t i) HWY_ATTR { Store(hn::Mul(Load(from + i), by), to + i); },
        [&](size_t i, size_t m) HWY_ATTR { StoreN(hn::Mul(LoadN(from + i, m), by), to + i, m); });
  }

  const AttentionGradArgs& args_;
  const AttentionBackend& backend_;
  const int64_t heads_, kv_heads_, group_, dk_, dv_, d_, e_;
  const float scale_;
};

template <typename T, typename A>
void RunGrad(Context& ctx, const AttentionGradArgs& args, const AttentionBackend& backend) {
  const int64_t sequences = static_cast<int64_t>(args.offsets.size()) - 1;
  const int64_t kv_heads = args.k.dim(1);
  int64_t longest = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    longest = std::max<int64_t>(longest, args.offsets[s + 1] - args.offsets[s]);
  }
  const int64_t n = (longest + kGradTile - 1) / kGradTile * kGradTile;
  const int64_t d = (args.q.dim(2) + 31) / 32 * 32, e = (args.v.dim(2) + 31) / 32 * 32;
  size_t bytes = 0;
  AttentionGradWork::At(nullptr, n, d, e, &bytes);
  Tensor scratch = ctx.Empty({ctx.threads, static_cast<int64_t>(bytes)}, DType::kU8);
  Backward<T, A> backward(args, backend);
  ParallelUnits(ctx, sequences * kv_heads, [&](int64_t u) {
    const auto w =
        AttentionGradWork::At(scratch.raw() + omp_get_thread_num() * bytes, n, d, e, nullptr);
    backend.begin();
    backward.Run(u / kv_heads, u % kv_heads, w);
    backend.end();
  });
}

void GradAny(Context& ctx, const AttentionGradArgs& args) {
  const AttentionBackend backend =
      AttentionBackendFor(args.q.dtype(), args.q.dtype() == DType::kBF16, args.kernel);
  AttentionBackend fp32 = AttentionBackendFor(DType::kF32, false, Bf16Kernel::kSimd);
  switch (args.q.dtype()) {
    case DType::kF32:
      return RunGrad<float, float>(ctx, args, fp32);
    case DType::kF16:
      return RunGrad<F16, float>(ctx, args, fp32);
    case DType::kBF16:
      return backend.bf16 ? RunGrad<BF16, BF16>(ctx, args, backend)
                          : RunGrad<BF16, float>(ctx, args, fp32);
    default:
      CADRE_CHECK(false, "attention of dtype {}", static_cast<int>(args.q.dtype()));
  }
}

template <typename T>
void SinkGrad(Context& ctx, const AttentionSinkGradArgs& args) {
  const int64_t tokens = args.out.dim(0), heads = args.out.dim(1), dv = args.out.dim(2);
  const T *out = args.out.data<T>(), *dout = args.dout.data<T>();
  ParallelFor(ctx, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      const float sink = static_cast<float>(args.sinks.data<T>()[h]) * kLog2E;
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t row = t * heads + h;
        float delta = 0;
        for (int64_t i = 0; i < dv; ++i) {
          delta += static_cast<float>(dout[row * dv + i]) * static_cast<float>(out[row * dv + i]);
        }
        sum += static_cast<double>(std::exp2(sink - args.lse.data<float>()[row]) * delta);
      }
      args.dsinks.data<float>()[h] -= static_cast<float>(sum);
    }
  });
}

void SinkGradAny(Context& ctx, const AttentionSinkGradArgs& args) {
  switch (args.out.dtype()) {
    case DType::kF32:
      return SinkGrad<float>(ctx, args);
    case DType::kF16:
      return SinkGrad<F16>(ctx, args);
    case DType::kBF16:
      return SinkGrad<BF16>(ctx, args);
    default:
      CADRE_CHECK(false, "attention of dtype {}", static_cast<int>(args.out.dtype()));
  }
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(GradAny);
HWY_EXPORT(SinkGradAny);

void AttentionGradCpu(Context& ctx, const AttentionGradArgs& args) {
  HWY_DYNAMIC_DISPATCH(GradAny)(ctx, args);
}

void AttentionSinkGradCpu(Context& ctx, const AttentionSinkGradArgs& args) {
  HWY_DYNAMIC_DISPATCH(SinkGradAny)(ctx, args);
}

}  // namespace cadre::ops
#endif
