#include "core/ops/kv_quantize.h"

#include <algorithm>
#include <vector>

#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

// Four codes, plus 8 each, in a word: `stride` apart.
uint16_t Word(const int8_t* codes, int64_t stride) {
  unsigned word = 0;
  for (int r = 0; r < 4; ++r) word |= static_cast<unsigned>(codes[r * stride] + 8) << (4 * r);
  return static_cast<uint16_t>(word);
}

void PutWord(std::byte* to, uint16_t word) {
  to[0] = static_cast<std::byte>(word);
  to[1] = static_cast<std::byte>(word >> 8);
}

void PutKey(const KvLayout& layout, const int8_t* codes, int64_t slot, std::byte* head) {
  const int64_t pad = layout.key_pad();
  std::byte* to = head + layout.bytes_of(slot / 16 * 16 * pad);
  const int64_t lane = slot % 16 * 2;
  if (layout.quantization == KvQuantization::kInt8) {
    for (int64_t d = 0; d < pad; ++d) {
      to[d / 2 * 32 + lane + d % 2] = static_cast<std::byte>(codes[d]);
    }
    return;
  }
  // 128 codes are eight d of 16 slots: rows of two d.
  for (int64_t d = 0; d < pad; d += 8, to += 64) {
    PutWord(to + lane * 2, Word(codes + d, 2));
    PutWord(to + lane * 2 + 2, Word(codes + d + 1, 2));
  }
}

void PutValue(const KvLayout& layout, const int8_t* codes, int64_t slot, std::byte* head) {
  const int64_t pad = layout.value_pad();
  std::byte* to = head + layout.bytes_of(layout.block_size * layout.key_pad() + slot / 2 * 2 * pad);
  const int64_t odd = slot % 2;
  if (layout.quantization == KvQuantization::kInt8) {
    for (int64_t d = 0; d < pad; ++d) to[d * 2 + odd] = static_cast<std::byte>(codes[d]);
    return;
  }
  // 128 codes are 64 d of two slots: rows of 16 d.
  for (int64_t d = 0; d < pad; d += 64, to += 64) {
    for (int64_t i = 0; i < 16; ++i) PutWord(to + (i * 2 + odd) * 2, Word(codes + d + i, 16));
  }
}

// What one thread quantizes a vector in.
class Writer {
 public:
  explicit Writer(const KvLayout& layout)
      : layout_(layout),
        row_(std::max(layout.key_pad(), layout.value_pad())),
        codes_(row_.size()),
        scales_(std::max(layout.key_groups(), layout.value_groups())) {}

  template <typename T>
  void Key(const T* x, int64_t slot, std::byte* head) {
    Quantize(x, layout_.key_dim, layout_.key_pad(), layout_.key_groups());
    PutKey(layout_, codes_.data(), slot, head);
    PutScales(layout_.key_groups(), slot, head + layout_.key_scales_at());
  }

  template <typename T>
  void Value(const T* x, int64_t slot, std::byte* head) {
    Quantize(x, layout_.value_dim, layout_.value_pad(), layout_.value_groups());
    PutValue(layout_, codes_.data(), slot, head);
    PutScales(layout_.value_groups(), slot, head + layout_.value_scales_at());
  }

 private:
  template <typename T>
  void Quantize(const T* x, int64_t dim, int64_t padded, int64_t groups) {
    for (int64_t d = 0; d < padded; ++d) row_[d] = d < dim ? static_cast<float>(x[d]) : 0.0f;
    QuantizeKv({.quantization = layout_.quantization,
                .x = row_.data(),
                .groups = groups,
                .group = padded / groups,
                .codes = codes_.data(),
                .scales = scales_.data()});
  }

  void PutScales(int64_t groups, int64_t slot, std::byte* to) const {
    auto* scales = reinterpret_cast<BF16*>(to);
    for (int64_t g = 0; g < groups; ++g) {
      scales[KvLayout::ScaleOffset(slot, g, groups)] = scales_[g];
    }
  }

  const KvLayout layout_;
  std::vector<float> row_;
  std::vector<int8_t> codes_;
  std::vector<BF16> scales_;
};

}  // namespace

void WriteQuantizedKv(Context& ctx, const WriteKvArgs& args) {
  const KvLayout& layout = args.layout;
  const int64_t heads = layout.kv_heads, dk = layout.key_dim, dv = layout.value_dim;
  VisitFloat(args.k.dtype(), [&](auto t) {
    using T = decltype(t);
    const T *k = args.k.data<T>(), *v = args.v.data<T>();
    // Words and scales of two tokens are never the same.
    ParallelFor(ctx, args.k.dim(0), 4, [&](int64_t begin, int64_t end) {
      Writer writer(layout);
      for (int64_t t = begin; t < end; ++t) {
        if (args.slots[t] < 0) continue;
        const int64_t slot = args.slots[t] % layout.block_size;
        std::byte* head = args.data + args.slots[t] / layout.block_size * layout.block_bytes();
        for (int64_t h = 0; h < heads; ++h, head += layout.head_bytes()) {
          writer.Key(k + (t * heads + h) * dk, slot, head);
          writer.Value(v + (t * heads + h) * dv, slot, head);
        }
      }
    });
  });
}

}  // namespace cadre::ops
