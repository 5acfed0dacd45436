// One rank of a test of ops: a context with a tape, parameters and one group of all ranks.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/random.h"
#include "core/tape.h"
#include "parallel/groups.h"
#include "parallel/test_ranks.h"

namespace cadre {

inline double ElementOf(const Tensor& x, int64_t i) {
  return VisitFloat(x.dtype(),
                    [&](auto t) { return static_cast<double>(x.data<decltype(t)>()[i]); });
}

// Normal numbers, the same for every rank and thread; streams differ.
inline Tensor Random(Allocator& memory, const Shape& shape, DType dtype, uint64_t stream) {
  Tensor x = Tensor::Empty(memory, shape, dtype);
  RandomKey key(11, "parallel_test");
  VisitFloat(dtype, [&](auto t) {
    for (int64_t i = 0; i < x.numel(); ++i) {
      x.data<decltype(t)>()[i] = static_cast<decltype(t)>(
          static_cast<float>(key.Normal(static_cast<uint64_t>(i), stream)));
    }
  });
  return x;
}

// Relative L2 distance.
inline double Distance(const Tensor& got, const Tensor& want) {
  if (!got.defined() || got.numel() != want.numel()) return INFINITY;
  double error = 0, norm = 0;
  for (int64_t i = 0; i < want.numel(); ++i) {
    error += std::pow(ElementOf(got, i) - ElementOf(want, i), 2);
    norm += std::pow(ElementOf(want, i), 2);
  }
  return norm == 0 ? std::sqrt(error) : std::sqrt(error / norm);
}

inline double ToleranceOf(DType dtype) {
  return dtype == DType::kF64 ? 1e-12 : dtype == DType::kF32 ? 1e-5 : 2e-2;
}

struct RankRig {
  RankRig(World& world, HostAllocator& allocator) : memory(allocator) {
    std::vector<int> all(static_cast<size_t>(world.size()));
    std::iota(all.begin(), all.end(), 0);
    communicator = world.NewGroup("tp", all);
    groups.tp = communicator.get();
    ctx = {
        .allocator = &memory, .threads = 1, .parameters = &store, .tape = &tape, .groups = &groups};
  }
  int rank() const { return communicator->rank(); }
  int size() const { return communicator->size(); }

  // A Var whose gradient is kept.
  Var Input(const Tensor& value) {
    Var x{value, tape.NewSlot()};
    tape.KeepGrad(x.slot);
    return x;
  }
  // This rank's run of rows.
  Tensor Mine(const Tensor& whole) const {
    const int64_t rows = whole.dim(0) / size();
    return whole.Narrow(rank() * rows, rows);
  }
  Tensor GradOf(const Var& x) { return tape.Grad(ctx, x.slot); }

  HostAllocator& memory;
  ParameterStore store;
  Tape tape{&ops::Accumulate};
  std::unique_ptr<Communicator> communicator;
  ParallelGroups groups;
  Context ctx;
};

// The memory outlives the worlds: they keep the tensors of operations that failed.
inline void RunRigs(int size, const std::function<void(RankRig&)>& body) {
  HostAllocator memory;
  RunRanks(size, [&](World& world) {
    RankRig rig(world, memory);
    body(rig);
  });
}

}  // namespace cadre
