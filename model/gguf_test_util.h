// A writer of GGUF files for tests, independent of the reader.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace cadre::testing_gguf {

template <typename T>
void Put(std::string* to, T value) {
  to->append(reinterpret_cast<const char*>(&value), sizeof value);
}
inline void PutString(std::string* to, std::string_view text) {
  Put(to, uint64_t{text.size()});
  to->append(text);
}

class Writer {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;

  void U32(std::string_view key, uint32_t value) { Key(key, 4), Put(&keys_, value); }
  void F32(std::string_view key, float value) { Key(key, 6), Put(&keys_, value); }
  void Bool(std::string_view key, bool value) { Key(key, 7), Put(&keys_, uint8_t{value}); }
  void String(std::string_view key, std::string_view value) {
    Key(key, 8);
    PutString(&keys_, value);
  }
  void Strings(std::string_view key, const std::vector<std::string>& values) {
    Array(key, 8, values.size());
    for (const std::string& value : values) PutString(&keys_, value);
  }
  template <typename T>
  void Numbers(std::string_view key, uint32_t type, const std::vector<T>& values) {
    Array(key, type, values.size());
    for (T value : values) Put(&keys_, value);
  }
  // shape: slowest first.
  void Tensor(std::string_view name, uint32_t type, const std::vector<int64_t>& shape,
              std::string_view bytes) {
    PutString(&tensors_, name);
    Put(&tensors_, static_cast<uint32_t>(shape.size()));
    for (size_t i = shape.size(); i-- > 0;) Put(&tensors_, static_cast<uint64_t>(shape[i]));
    Put(&tensors_, type);
    Put(&tensors_, uint64_t{data_.size()});
    data_ += bytes;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    ++tensor_count_;
  }
  // A description as it comes, for bad files.
  void RawTensor(std::string_view bytes) {
    tensors_ += bytes;
    ++tensor_count_;
  }
  void RawKey(std::string_view bytes) {
    keys_ += bytes;
    ++key_count_;
  }

  std::string Bytes() const {
    std::string out = "GGUF";
    Put(&out, version);
    Put(&out, tensor_count_);
    Put(&out, key_count_);
    out += keys_ + tensors_;
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data_;
  }

 private:
  void Key(std::string_view key, uint32_t type) {
    PutString(&keys_, key);
    Put(&keys_, type);
    ++key_count_;
  }
  void Array(std::string_view key, uint32_t type, uint64_t count) {
    Key(key, 9);
    Put(&keys_, type);
    Put(&keys_, count);
  }

  std::string keys_, tensors_, data_;
  uint64_t key_count_ = 0, tensor_count_ = 0;
};

// The least power of two that is not under `value`; products with small integers are exact.
inline float PowerOver(float value) {
  return value > 0 ? std::exp2(std::ceil(std::log2(value))) : std::exp2(-20.0f);
}

// 256 values: eight groups with a scale and a minimum each, of 6 bits.
inline void EncodeQ4_K(float* block, std::string* out) {
  float lows[8], steps[8];
  for (int g = 0; g < 8; ++g) {
    const auto [low, high] = std::minmax_element(block + g * 32, block + (g + 1) * 32);
    lows[g] = std::max(-*low, 0.0f);
    steps[g] = std::max((std::max(*high, 0.0f) + lows[g]) / 15, 0.0f);
  }
  const float d = PowerOver(*std::max_element(steps, steps + 8) / 63);
  const float dmin = PowerOver(*std::max_element(lows, lows + 8) / 63);
  uint8_t scales[8], mins[8], packed[12] = {}, codes[256];
  for (int g = 0; g < 8; ++g) {
    scales[g] = static_cast<uint8_t>(std::max(std::ceil(steps[g] / d), 1.0f));
    mins[g] = static_cast<uint8_t>(std::round(lows[g] / dmin));
    const float step = d * scales[g], low = dmin * mins[g];
    for (int i = g * 32; i < (g + 1) * 32; ++i) {
      codes[i] = static_cast<uint8_t>(
          std::min(std::max(std::round((block[i] + low) / step), 0.0f), 15.0f));
      block[i] = step * codes[i] - low;
    }
  }
  for (int g = 0; g < 4; ++g) {
    packed[g] = static_cast<uint8_t>(scales[g] | scales[g + 4] >> 4 << 6);
    packed[g + 4] = static_cast<uint8_t>(mins[g] | mins[g + 4] >> 4 << 6);
    packed[g + 8] = static_cast<uint8_t>((scales[g + 4] & 15) | (mins[g + 4] & 15) << 4);
  }
  Put(out, F16(d).bits);
  Put(out, F16(dmin).bits);
  for (const uint8_t byte : packed) Put(out, byte);
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = pair * 64; i < pair * 64 + 32; ++i) {
      Put(out, static_cast<uint8_t>(codes[i] | codes[i + 32] << 4));
    }
  }
}

// 256 values: sixteen groups with a signed scale each.
inline void EncodeQ6_K(float* block, std::string* out) {
  float steps[16];
  for (int g = 0; g < 16; ++g) {
    float most = 0;
    for (int i = g * 16; i < (g + 1) * 16; ++i) most = std::max(most, std::fabs(block[i]));
    steps[g] = most / 31;
  }
  const float d = PowerOver(*std::max_element(steps, steps + 16) / 127);
  int8_t scales[16];
  int codes[256];
  for (int g = 0; g < 16; ++g) {
    // Every other one negative, as the format allows.
    const float size = std::max(std::ceil(steps[g] / d), 1.0f);
    scales[g] = static_cast<int8_t>(g % 2 == 0 ? size : -size);
    for (int i = g * 16; i < (g + 1) * 16; ++i) {
      const float code = std::round(block[i] / (d * scales[g]));
      codes[i] = static_cast<int>(std::min(std::max(code, -32.0f), 31.0f));
      block[i] = d * scales[g] * static_cast<float>(codes[i]);
      codes[i] += 32;
    }
  }
  for (int half = 0; half < 256; half += 128) {
    for (int i = half; i < half + 64; ++i) {
      Put(out, static_cast<uint8_t>((codes[i] & 15) | (codes[i + 64] & 15) << 4));
    }
  }
  for (int half = 0; half < 256; half += 128) {
    for (int i = half; i < half + 32; ++i) {
      Put(out, static_cast<uint8_t>(codes[i] >> 4 | codes[i + 32] >> 4 << 2 |
                                    codes[i + 64] >> 4 << 4 | codes[i + 96] >> 4 << 6));
    }
  }
  for (const int8_t scale : scales) Put(out, scale);
  Put(out, F16(d).bits);
}

// Values in blocks, and what they stand for then. type 0: F32, 1: F16, 30: BF16; of 32 values 2:
// Q4_0, 8: Q8_0; of 256 values 12: Q4_K, 14: Q6_K.
inline std::string Encode(uint32_t type, std::vector<float>* values) {
  std::string out;
  if (type == 30) {
    for (float& value : *values) {
      Put(&out, BF16(value).bits);
      value = static_cast<float>(BF16(value));
    }
    return out;
  }
  if (type == 12 || type == 14) {
    for (size_t at = 0; at < values->size(); at += 256) {
      (type == 12 ? EncodeQ4_K : EncodeQ6_K)(values->data() + at, &out);
    }
    return out;
  }
  if (type < 2) {
    for (float& value : *values) {
      if (type == 0) Put(&out, value);
      if (type == 1) Put(&out, F16(value).bits);
      if (type == 1) value = static_cast<float>(F16(value));
    }
    return out;
  }
  for (size_t at = 0; at < values->size(); at += 32) {
    float* block = values->data() + at;
    float most = 0;
    for (int i = 0; i < 32; ++i) {
      most = std::fabs(block[i]) > std::fabs(most) ? block[i] : most;
    }
    const F16 scale(type == 8 ? std::fabs(most) / 127 : most / -8);
    const auto d = static_cast<float>(scale);
    Put(&out, scale.bits);
    int codes[32];
    for (int i = 0; i < 32; ++i) {
      const float low = type == 8 ? -127 : -8, high = type == 8 ? 127 : 7;
      const float code = d == 0 ? 0 : std::min(std::max(std::round(block[i] / d), low), high);
      codes[i] = static_cast<int>(code);
      block[i] = code * d;
    }
    for (int i = 0; i < (type == 8 ? 32 : 16); ++i) {
      if (type == 8) {
        Put(&out, static_cast<int8_t>(codes[i]));
      } else {
        Put(&out, static_cast<uint8_t>((codes[i] + 8) | (codes[i + 16] + 8) << 4));
      }
    }
  }
  return out;
}

}  // namespace cadre::testing_gguf
