// What attention's tests share: cases, and a batch with parameters of its own.
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "core/ops/attention.h"
#include "core/random.h"

namespace cadre::ops::testing_attention {

struct Dims {
  int heads, kv_heads, dk, dv;
};

struct Case {
  std::vector<int32_t> offsets;
  Dims dims;
  int window = 0;
  bool sinks = false;
};

inline Tensor Normal(Context& ctx, const Shape& shape, DType dtype, uint64_t stream) {
  RandomKey key(11, "attention_test");
  Tensor x = ctx.Empty(shape, dtype);
  VisitFloat(dtype, [&](auto t) {
    auto* data = x.data<decltype(t)>();
    for (int64_t i = 0; i < x.numel(); ++i) {
      data[i] = static_cast<decltype(t)>(static_cast<float>(key.Normal(i, stream)));
    }
  });
  return x;
}

inline Tensor Wide(Context& ctx, const Tensor& x) {
  Tensor wide = ctx.Empty(x.shape(), DType::kF64);
  VisitFloat(x.dtype(), [&](auto t) {
    for (int64_t i = 0; i < x.numel(); ++i) {
      wide.data<double>()[i] = static_cast<double>(x.data<decltype(t)>()[i]);
    }
  });
  return wide;
}

struct Batch {
  HostAllocator allocator;
  Context ctx;
  ParameterStore store;
  Tensor q, k, v;
  std::vector<int32_t> offsets;
  AttentionArgs args;

  Batch(const Case& c, DType dtype) : offsets(c.offsets) {
    ctx = {.allocator = &allocator, .threads = 2, .parameters = &store};
    args = {.scale = 0.2f, .sliding_window = c.window, .offsets = offsets};
    if (c.sinks) {
      args.sinks = store.Add({.name = "sinks", .shape = {c.dims.heads}});
      store.Allocate(allocator, dtype, {});
      Tensor sinks = store.Acquire(args.sinks, Lease::kForward);
      std::memcpy(sinks.raw(), Normal(ctx, sinks.shape(), dtype, 9).raw(), sinks.bytes());
      store.Release(args.sinks, Lease::kForward);
    }
    const int64_t tokens = offsets.back();
    q = Normal(ctx, {tokens, c.dims.heads, c.dims.dk}, dtype, 0);
    k = Normal(ctx, {tokens, c.dims.kv_heads, c.dims.dk}, dtype, 1);
    v = Normal(ctx, {tokens, c.dims.kv_heads, c.dims.dv}, dtype, 2);
  }

  Tensor Whole() { return Attention(ctx, {q}, {k}, {v}, args).value; }
};

// Sequences whose keys and values lie in scattered blocks of a pool full of NaN.
struct Paged {
  std::vector<std::byte> pool;
  std::vector<int32_t> tables, lengths;
  KvView view;

  Paged(Context& ctx, const Tensor& k, const Tensor& v, std::span<const int32_t> offsets,
        int block_size, KvQuantization quantization = KvQuantization::kNone) {
    const int64_t sequences = static_cast<int64_t>(offsets.size()) - 1;
    view.layout = {KvPoolDType(k.dtype()),
                   static_cast<int>(k.dim(1)),
                   static_cast<int>(k.dim(2)),
                   static_cast<int>(v.dim(2)),
                   block_size,
                   quantization};
    view.table_stride = k.dim(0) / block_size + 1;
    const int64_t blocks = sequences * view.table_stride;
    pool.assign(blocks * KvBlockBytes(view.layout), std::byte{0xff});
    std::vector<int64_t> slots;
    for (int64_t s = 0; s < sequences; ++s) {
      lengths.push_back(offsets[s + 1] - offsets[s]);
      for (int64_t b = 0; b < view.table_stride; ++b) {
        tables.push_back(static_cast<int32_t>((b * sequences + s) * 7919 % blocks));
      }
      for (int64_t i = 0; i < lengths[s]; ++i) {
        const int64_t block = tables[s * view.table_stride + i / block_size];
        slots.push_back(block * block_size + i % block_size);
      }
    }
    view.data = pool.data();
    view.block_tables = tables;
    view.context_lengths = lengths;
    WriteKv(ctx, {k, v, slots, view.data, view.layout});
  }
};

inline const std::vector<Case>& BitCases() {
  static const std::vector<Case> cases = {
      {{0, 150, 151, 290}, {4, 2, 64, 64}, 0, true},
      {{0, 40, 237}, {8, 1, 80, 48}, 50},
      {{0, 129, 259}, {3, 3, 192, 128}},
  };
  return cases;
}

inline void ForEachBatch(const std::function<void(const Case&, Batch&)>& check) {
  for (const Case& c : BitCases()) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF64}) {
      SCOPED_TRACE(std::string(Name(dtype)) + " dk " + std::to_string(c.dims.dk));
      Batch batch(c, dtype);
      check(c, batch);
    }
  }
}

}  // namespace cadre::ops::testing_attention
