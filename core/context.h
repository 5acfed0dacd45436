// Context: what running code may use, passed to every op; there are no globals. A Context is used
// by one thread at a time (the one that enters OpenMP); it borrows everything that it points to.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace cadre {

class ParameterStore;
class PackedWeights;
class Tape;
class Trace;
struct ParallelGroups;

struct Context {
  Allocator* allocator = nullptr;  // never null when ops run
  Device device;
  void* stream = nullptr;                // cudaStream_t on a GPU
  int threads = 1;                       // OpenMP threads of a parallel region
  ParameterStore* parameters = nullptr;  // leases weights and gradients to ops
  PackedWeights* packed = nullptr;       // null: weights are packed at each use
  Tape* tape = nullptr;                  // null means inference
  Trace* trace = nullptr;                // null means off
  uint64_t seed = 0;                     // with `step`, keys every random draw
  int64_t step = 0;
  ParallelGroups* groups = nullptr;  // parallel/groups.h; null: one process

  Tensor Empty(const Shape& shape, DType dtype) const {
    return Tensor::Empty(*allocator, shape, dtype);
  }
  Tensor Zeros(const Shape& shape, DType dtype) const {
    return Tensor::Zeros(*allocator, shape, dtype);
  }
};

}  // namespace cadre
