#include "core/ops/kv_view.h"

#include "core/ops/attention_kernels.h"
#include "core/ops/kv_quantize.h"
#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

template <typename T>
void WriteKey(const KvLayout& layout, const T* k, int64_t slot, T* head) {
  T* to = head + layout.KeyOffset(slot, 0);
  const int64_t dim = layout.key_dim, pad = layout.key_pad();
  if constexpr (sizeof(T) == 2) {
    int64_t d = 0;
    for (; d + 1 < dim; d += 2) {
      to[d * 16] = k[d];
      to[d * 16 + 1] = k[d + 1];
    }
    for (; d < pad; ++d) to[d / 2 * 32 + d % 2] = d < dim ? k[d] : T();
  } else {
    for (int64_t d = 0; d < dim; ++d) to[d * 16] = k[d];
  }
}

template <typename T>
void WriteValue(const KvLayout& layout, const T* v, int64_t slot, T* head) {
  T* to = head + layout.ValueOffset(slot, 0);
  const int64_t dim = layout.value_dim, pad = layout.value_pad();
  constexpr int64_t kStep = sizeof(T) == 2 ? 2 : 1;
  for (int64_t d = 0; d < dim; ++d) to[d * kStep] = v[d];
  for (int64_t d = dim; d < pad; ++d) to[d * kStep] = T();
}

bool IsPanel(std::span<const int64_t> slots) {
  if (slots[0] % 16 != 0) return false;
  for (int64_t i = 1; i < 16; ++i) {
    if (slots[i] != slots[0] + i) return false;
  }
  return true;
}

// 16 tokens of bf16 that fill a panel.
void WritePanels(const WriteKvArgs& args, int64_t t) {
  const KvLayout& layout = args.layout;
  const int64_t heads = layout.kv_heads, dk = layout.key_dim, dv = layout.value_dim;
  const int64_t slot = args.slots[t] % layout.block_size;
  std::byte* head = args.data + args.slots[t] / layout.block_size * layout.block_bytes();
  for (int64_t h = 0; h < heads; ++h, head += layout.head_bytes()) {
    BF16* to = reinterpret_cast<BF16*>(head);
    const BF16 *k[16], *v = args.v.data<BF16>() + (t * heads + h) * dv;
    for (int64_t i = 0; i < 16; ++i) k[i] = args.k.data<BF16>() + ((t + i) * heads + h) * dk;
    AttentionPanelBf16(k, dk, layout.key_pad(), to + layout.KeyOffset(slot, 0));
    for (int64_t i = 0; i < 16; i += 2) {
      const BF16* even = v + i * heads * dv;
      AttentionPairBf16(even, even + heads * dv, dv, layout.value_pad(),
                        to + layout.ValueOffset(slot + i, 0));
    }
  }
}

template <typename T>
void WriteTokens(Context& ctx, const WriteKvArgs& args) {
  const KvLayout& layout = args.layout;
  const int64_t heads = layout.kv_heads, dk = layout.key_dim, dv = layout.value_dim;
  const T *k = args.k.data<T>(), *v = args.v.data<T>();
  const int64_t tokens = args.k.dim(0);
  const bool panels = sizeof(T) == 2 && MachineBf16Kernel() != Bf16Kernel::kSimd;
  // A thread starts a panel of 16 only where it owns all of it; the bytes are the same either way.
  ParallelFor(ctx, tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (args.slots[t] < 0) continue;
      if (panels && t + 16 <= end && IsPanel(args.slots.subspan(t, 16))) {
        WritePanels(args, t);
        t += 15;
        continue;
      }
      const int64_t block = args.slots[t] / layout.block_size;
      const int64_t slot = args.slots[t] % layout.block_size;
      std::byte* head = args.data + block * layout.block_bytes();
      for (int64_t h = 0; h < heads; ++h, head += layout.head_bytes()) {
        WriteKey(layout, k + (t * heads + h) * dk, slot, reinterpret_cast<T*>(head));
        WriteValue(layout, v + (t * heads + h) * dv, slot, reinterpret_cast<T*>(head));
      }
    }
  });
}

Tensor WidenF16(Context& ctx, const Tensor& x) {
  Tensor wide = ctx.Empty(x.shape(), DType::kF32);
  const F16* from = x.data<F16>();
  float* to = wide.data<float>();
  for (int64_t i = 0; i < x.numel(); ++i) to[i] = static_cast<float>(from[i]);
  return wide;
}

// The element of this place in a head, without its scale.
double ElementAt(const KvLayout& layout, const std::byte* head, int64_t at) {
  switch (layout.quantization) {
    case KvQuantization::kInt8:
      return static_cast<int8_t>(head[at]);
    case KvQuantization::kInt4: {
      const int64_t in = at % 128, row = in / 32, lane = in % 32;
      const auto byte = std::to_integer<int>(head[at / 128 * 64 + lane * 2 + row / 2]);
      return (byte >> (row % 2 * 4) & 15) - 8;
    }
    case KvQuantization::kNone:
      break;
  }
  return VisitFloat(layout.dtype, [&](auto t) {
    return static_cast<double>(reinterpret_cast<const decltype(t)*>(head)[at]);
  });
}

double ScaleAt(const std::byte* scales, int64_t slot, int64_t group, int64_t groups) {
  if (groups == 0) return 1.0;
  return static_cast<double>(
      reinterpret_cast<const BF16*>(scales)[KvLayout::ScaleOffset(slot, group, groups)]);
}

}  // namespace

size_t KvBlockBytes(const KvLayout& layout) { return static_cast<size_t>(layout.block_bytes()); }

DType KvPoolDType(DType dtype) { return dtype == DType::kF16 ? DType::kF32 : dtype; }

double KvKey(const KvLayout& layout, const std::byte* head, int64_t slot, int64_t d) {
  const int64_t groups = layout.key_groups();
  return ElementAt(layout, head, layout.KeyOffset(slot, d)) *
         ScaleAt(head + layout.key_scales_at(), slot, d * groups / layout.key_pad(), groups);
}

double KvValue(const KvLayout& layout, const std::byte* head, int64_t slot, int64_t d) {
  const int64_t groups = layout.value_groups();
  return ElementAt(layout, head, layout.ValueOffset(slot, d)) *
         ScaleAt(head + layout.value_scales_at(), slot, d * groups / layout.value_pad(), groups);
}

void WriteKv(Context& ctx, const WriteKvArgs& args) {
  const KvLayout& layout = args.layout;
  const int64_t tokens = static_cast<int64_t>(args.slots.size());
  CADRE_CHECK(layout.block_size > 0 && layout.block_size % 16 == 0, "block size {}",
              layout.block_size);
  CADRE_CHECK(args.k.shape() == Shape({tokens, layout.kv_heads, layout.key_dim}) &&
                  args.v.shape() == Shape({tokens, layout.kv_heads, layout.value_dim}),
              "write_kv of {} and {} to {} slots", args.k.shape().ToString(),
              args.v.shape().ToString(), tokens);
  if (args.k.dtype() == DType::kF16) {
    WriteKvArgs wide = args;
    wide.k = WidenF16(ctx, args.k);
    wide.v = WidenF16(ctx, args.v);
    return WriteKv(ctx, wide);
  }
  CADRE_CHECK(args.k.dtype() == layout.dtype && args.v.dtype() == layout.dtype,
              "write_kv of dtype {}", static_cast<int>(args.k.dtype()));
  if (layout.quantized()) return WriteQuantizedKv(ctx, args);
  switch (layout.dtype) {
    case DType::kF64:
      return WriteTokens<double>(ctx, args);
    case DType::kF32:
      return WriteTokens<float>(ctx, args);
    case DType::kBF16:
      return WriteTokens<BF16>(ctx, args);
    default:
      CADRE_CHECK(false, "KV pool of dtype {}", static_cast<int>(layout.dtype));
  }
}

}  // namespace cadre::ops
