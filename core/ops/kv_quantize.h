// Keys and values as int8 or int4 codes. A code is exact in bf16, so attention multiplies codes and
// scales the products: what a reader gets is code * scale, never rounded in between.
//
// A group of one token's and head's vector has one scale, rounded to bf16 away from zero, and codes
// = x / scale, rounded to nearest even:
//   int8   the whole vector; scale = max |x| / 127, codes -127 to 127
//   int4   32 elements; scale = -m / 8 where m is the element that is largest in magnitude (the
//          negative one of two), codes -8 to 7: the sign of the scale gives the widest element the
//          widest code
// Zeros give a scale of zero. A group with an infinity or a NaN has a scale of NaN: whoever sees it
// gets NaN, as without quantization. Private to core/ops but for KvQuantization's users' tests.
#pragma once

#include "core/ops/kv_view.h"

namespace cadre::ops {

// x [groups * group] -> codes of as many, scales [groups]. group is a multiple of 16.
struct KvQuantizeArgs {
  KvQuantization quantization = KvQuantization::kInt8;
  const float* x = nullptr;
  int64_t groups = 0, group = 0;
  int8_t* codes = nullptr;
  BF16* scales = nullptr;
};
void QuantizeKv(const KvQuantizeArgs& args);

// For a quantized layout; what WriteKv checked holds.
void WriteQuantizedKv(Context& ctx, const WriteKvArgs& args);

// n codes as they lie in a pool, none of int8 -128 and n a multiple of 128, become n elements in
// bf16's order. The second for Bf16Kernel::kAvx512 and kAmx.
void UnpackKv(KvQuantization quantization, const std::byte* codes, int64_t n, BF16* to);
void UnpackKvAvx512(KvQuantization quantization, const std::byte* codes, int64_t n, BF16* to);

}  // namespace cadre::ops
