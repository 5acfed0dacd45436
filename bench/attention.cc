// Attention against oneDNN's GEMM peak and the memory's read bandwidth, in one run:
//   build/release/bench_attention
// Products count 2 FLOP per multiply-add over the visible (query, key) pairs only: 2 (dh + dv) per
// pair and head forward, 2.5 times that backward (which recomputes the scores).
#include <cstdio>
#include <vector>

#include "bench/peak.h"
#include "core/host_allocator.h"
#include "core/ops/attention.h"
#include "core/ops/elementwise.h"

namespace cadre::bench {
namespace {

struct Shapes {
  int64_t sequences, length, heads, kv_heads, dim;
};

void Fill(const Tensor& x) {
  auto* data = x.data<BF16>();
  uint32_t state = 1;
  for (int64_t i = 0; i < x.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = BF16(static_cast<float>(state >> 8) / 8388608.0f - 1.0f);
  }
}

Tensor Filled(Context& ctx, const Shape& shape) {
  Tensor x = ctx.Empty(shape, DType::kBF16);
  Fill(x);
  return x;
}

template <typename Run>
double Best(int repeats, const Run& run) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    double start = Now();
    run();
    best = std::min(best, Now() - start);
  }
  return best;
}

double PairFlops(const Shapes& s) {
  double pairs = 0.5 * static_cast<double>(s.length) * static_cast<double>(s.length + 1);
  return pairs * static_cast<double>(s.sequences * s.heads * 4 * s.dim);
}

void Training(Context ctx, double peak, const Shapes& s) {
  const int64_t tokens = s.sequences * s.length;
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i <= s.sequences; ++i) offsets.push_back(static_cast<int32_t>(i * s.length));
  const ops::AttentionArgs args{.scale = 0.125f, .offsets = offsets};
  Tensor q = Filled(ctx, {tokens, s.heads, s.dim}), k = Filled(ctx, {tokens, s.kv_heads, s.dim}),
         v = Filled(ctx, {tokens, s.kv_heads, s.dim});
  Tensor dout = Filled(ctx, q.shape());
  double backward = 1e30;
  const double forward = Best(5, [&] { ops::Attention(ctx, {q}, {k}, {v}, args); });
  for (int i = 0; i < 5; ++i) {
    Tape tape(&ops::Accumulate);
    ctx.tape = &tape;
    const Var out =
        ops::Attention(ctx, {q, tape.NewSlot()}, {k, tape.NewSlot()}, {v, tape.NewSlot()}, args);
    tape.Seed(out.slot, dout);
    const double start = Now();
    tape.Backward(ctx);
    backward = std::min(backward, Now() - start);
    ctx.tape = nullptr;
  }
  const double flops = PairFlops(s);
  std::printf(
      "train   %3ld x %5ld  H %2ld K %2ld dh %3ld   fwd %7.2f ms %5.2f   bwd %7.2f ms %5.2f\n",
      s.sequences, s.length, s.heads, s.kv_heads, s.dim, forward * 1e3, flops / forward / peak,
      backward * 1e3, 2.5 * flops / backward / peak);
}

// Queries of `chunk` new tokens per sequence over `length` cached ones.
void Serving(Context ctx, double peak, double bandwidth, const Shapes& s, int64_t chunk) {
  ops::KvView view;
  view.layout = {DType::kBF16, static_cast<int>(s.kv_heads), static_cast<int>(s.dim),
                 static_cast<int>(s.dim), 64};
  view.table_stride = (s.length + 63) / 64;
  std::vector<int32_t> tables, lengths, offsets = {0};
  for (int64_t i = 0; i < s.sequences; ++i) {
    lengths.push_back(static_cast<int32_t>(s.length));
    offsets.push_back(static_cast<int32_t>((i + 1) * chunk));
    for (int64_t b = 0; b < view.table_stride; ++b) {
      tables.push_back(static_cast<int32_t>(tables.size()));
    }
  }
  const int64_t blocks = static_cast<int64_t>(tables.size());
  Tensor pool = Filled(ctx, {blocks, view.layout.block_bytes() / 2});
  view.data = pool.raw();
  view.block_tables = tables;
  view.context_lengths = lengths;
  Tensor q = Filled(ctx, {s.sequences * chunk, s.heads, s.dim});
  const ops::AttentionArgs args{.scale = 0.125f, .offsets = offsets};
  const double seconds = Best(7, [&] { ops::PagedAttention(ctx, q, view, args); });
  const double pairs = static_cast<double>(chunk * s.length - chunk * (chunk - 1) / 2);
  const double flops = pairs * static_cast<double>(s.sequences * s.heads * 4 * s.dim);
  std::printf(
      "serve   %3ld x %5ld  H %2ld K %2ld dh %3ld   chunk %3ld %8.3f ms   GEMM peak %5.2f   "
      "read bandwidth %5.2f\n",
      s.sequences, s.length, s.heads, s.kv_heads, s.dim, chunk, seconds * 1e3,
      flops / seconds / peak, static_cast<double>(pool.bytes()) / seconds / bandwidth);
}

}  // namespace
}  // namespace cadre::bench

int main() {
  using namespace cadre;
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = 2};
  const double peak = bench::GemmPeak(2, true), bandwidth = bench::ReadBandwidth(2);
  std::printf(
      "bf16 peak (oneDNN 2048^3, 2 threads) %.0f GFLOP/s, read bandwidth %.1f GB/s; below, "
      "shares of them\n",
      peak / 1e9, bandwidth / 1e9);
  bench::Training(ctx, peak, {16, 1024, 12, 12, 64});
  bench::Training(ctx, peak, {16, 1024, 12, 4, 64});
  bench::Training(ctx, peak, {64, 256, 12, 12, 64});
  bench::Training(ctx, peak, {2, 4096, 16, 8, 128});
  bench::Serving(ctx, peak, bandwidth, {1, 512, 12, 12, 64}, 512);
  bench::Serving(ctx, peak, bandwidth, {1, 4096, 32, 8, 128}, 512);
  bench::Serving(ctx, peak, bandwidth, {16, 2048, 32, 8, 128}, 1);
  bench::Serving(ctx, peak, bandwidth, {1, 32768, 32, 8, 128}, 1);
  return 0;
}
