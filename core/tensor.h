// Tensor: ref-counted storage seen as a row-major contiguous array. Copying a Tensor shares the
// storage; Narrow (rows of the first dimension) and Reshape are views of it. There are no strides:
// an op that needs other columns copies them.
//
// Thread-safety: reading from many threads is fine; writing elements is the caller's to order.
// Shapes stand in comments with one legend: T tokens, D model, H heads, K KV heads, E experts,
// V vocabulary, I intermediate, dh head size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>

#include "core/dtype.h"

namespace cadre {

enum class DeviceKind : uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims);

  int rank() const { return rank_; }
  // Negative axes count from the end.
  int64_t operator[](int axis) const { return dims_[axis < 0 ? axis + rank_ : axis]; }
  int64_t numel() const;
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  std::string ToString() const;  // "[4, 8]"
  bool operator==(const Shape& other) const;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// Bytes on one device; returned to where they came from when the last owner goes.
class Storage {
 public:
  using Deleter = void (*)(void* owner, std::byte* data, size_t bytes);
  Storage(std::byte* data, size_t bytes, Device device, Deleter deleter, void* owner)
      : data_(data), bytes_(bytes), device_(device), deleter_(deleter), owner_(owner) {}
  ~Storage() {
    if (deleter_ != nullptr) deleter_(owner_, data_, bytes_);
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  std::byte* data_;
  size_t bytes_;
  Device device_;
  Deleter deleter_;
  void* owner_;
};

// Where storage comes from. Thread-safe. Outlives all storage that it gave. The contents are
// uninitialized, aligned to 64 bytes; running out of memory is a CHECK, since what a run needs is
// planned before it starts.
class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual std::shared_ptr<Storage> Allocate(size_t bytes) = 0;
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<Storage> storage, size_t byte_offset, Shape shape, DType dtype);

  static Tensor Empty(Allocator& allocator, const Shape& shape, DType dtype);
  static Tensor Zeros(Allocator& allocator, const Shape& shape, DType dtype);
  // Copies `values`; for tests and small host data.
  template <typename T>
  static Tensor Of(Allocator& allocator, const Shape& shape, std::span<const T> values) {
    Tensor tensor = Empty(allocator, shape, kDTypeOf<T>);
    CADRE_CHECK(tensor.numel() == static_cast<int64_t>(values.size()), "shape {} for {} values",
                shape.ToString(), values.size());
    std::copy(values.begin(), values.end(), tensor.data<T>());
    return tensor;
  }

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int axis) const { return shape_[axis]; }
  int64_t numel() const { return shape_.numel(); }
  DType dtype() const { return dtype_; }
  size_t bytes() const { return static_cast<size_t>(numel()) * SizeOf(dtype_); }
  Device device() const { return storage_->device(); }
  const std::shared_ptr<Storage>& storage() const { return storage_; }
  size_t byte_offset() const { return byte_offset_; }

  std::byte* raw() const { return storage_->data() + byte_offset_; }
  // T must be the C++ type of dtype().
  template <typename T>
  T* data() const {
    CADRE_CHECK(dtype_ == kDTypeOf<T>, "tensor is {}", static_cast<int>(dtype_));
    return reinterpret_cast<T*>(raw());
  }
  template <typename T>
  std::span<T> span() const {
    return {data<T>(), static_cast<size_t>(numel())};
  }

  // Views of the same storage.
  Tensor Reshape(const Shape& shape) const;
  Tensor Narrow(int64_t begin, int64_t rows) const;  // rows [begin, begin + rows) of dimension 0

 private:
  std::shared_ptr<Storage> storage_;
  size_t byte_offset_ = 0;
  Shape shape_;
  DType dtype_ = DType::kF32;
};

}  // namespace cadre
