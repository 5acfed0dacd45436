#include "core/tensor.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace cadre {

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  CADRE_CHECK(rank_ <= kMaxRank, "rank {} over {}", rank_, kMaxRank);
  for (int64_t dim : dims) CADRE_CHECK(dim >= 0, "negative dimension {}", dim);
  std::copy(dims.begin(), dims.end(), dims_.begin());
}

int64_t Shape::numel() const {
  int64_t product = 1;
  for (int64_t dim : dims()) product *= dim;
  return product;
}

std::string Shape::ToString() const { return fmt::format("[{}]", fmt::join(dims(), ", ")); }

bool Shape::operator==(const Shape& other) const {
  return std::ranges::equal(dims(), other.dims());
}

Tensor::Tensor(std::shared_ptr<Storage> storage, size_t byte_offset, Shape shape, DType dtype)
    : storage_(std::move(storage)), byte_offset_(byte_offset), shape_(shape), dtype_(dtype) {
  CADRE_CHECK(byte_offset_ + bytes() <= storage_->bytes(), "{} bytes at {} of {}", bytes(),
              byte_offset_, storage_->bytes());
}

Tensor Tensor::Empty(Allocator& allocator, const Shape& shape, DType dtype) {
  return Tensor(allocator.Allocate(static_cast<size_t>(shape.numel()) * SizeOf(dtype)), 0, shape,
                dtype);
}

Tensor Tensor::Zeros(Allocator& allocator, const Shape& shape, DType dtype) {
  Tensor tensor = Empty(allocator, shape, dtype);
  CADRE_CHECK(tensor.device().kind == DeviceKind::kCpu);
  std::memset(tensor.raw(), 0, tensor.bytes());
  return tensor;
}

Tensor Tensor::Reshape(const Shape& shape) const {
  CADRE_CHECK(shape.numel() == numel(), "{} as {}", shape_.ToString(), shape.ToString());
  return Tensor(storage_, byte_offset_, shape, dtype_);
}

Tensor Tensor::Narrow(int64_t begin, int64_t rows) const {
  CADRE_CHECK(shape_.rank() > 0 && begin >= 0 && rows >= 0 && begin + rows <= dim(0),
              "rows [{}, {}) of {}", begin, begin + rows, shape_.ToString());
  std::array<int64_t, Shape::kMaxRank> dims{};
  std::copy(shape_.dims().begin(), shape_.dims().end(), dims.begin());
  int64_t row_elements = dim(0) == 0 ? 0 : numel() / dim(0);
  dims[0] = rows;
  Shape shape(std::span<const int64_t>(dims.data(), shape_.rank()));
  return Tensor(storage_, byte_offset_ + static_cast<size_t>(begin * row_elements) * SizeOf(dtype_),
                shape, dtype_);
}

}  // namespace cadre
