// A writer of GGUF files for tests, independent of the reader.
#pragma once

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

// Values in blocks of 32, and what they stand for then. type 8: Q8_0, 2: Q4_0, 0: F32, 1: F16.
inline std::string Encode(uint32_t type, std::vector<float>* values) {
  std::string out;
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
