// Decode attention over cached contexts, one query a sequence:
//   OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=300 build/release/bench_attention_decode
// A ragged batch cut evenly over the threads (core/ops/lean_plan.h) against whole sequences and
// heads assigned to threads as these become free; and long contexts in bf16, int8 and int4 against
// the memory's read bandwidth, all measured in the same run.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "bench/peak.h"
#include "core/host_allocator.h"
#include "core/ops/attention.h"

namespace cadre::bench {
namespace {

constexpr int kThreads = 2;

struct Shape {
  int64_t heads, kv_heads, dim;
};

void Fill(const Tensor& x) {
  auto* data = x.data<BF16>();
  uint32_t state = 1;
  for (int64_t i = 0; i < x.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = BF16(static_cast<float>(state >> 8) / 8388608.0f - 1.0f);
  }
}

// Sequences of these lengths, whose keys and values lie in blocks of 64, and a query of each.
class Cached {
 public:
  Cached(Context& ctx, const Shape& shape, std::vector<int32_t> lengths,
         ops::KvQuantization quantization = ops::KvQuantization::kNone)
      : ctx_(ctx), shape_(shape), lengths_(std::move(lengths)) {
    view_.layout = {DType::kBF16,
                    static_cast<int>(shape.kv_heads),
                    static_cast<int>(shape.dim),
                    static_cast<int>(shape.dim),
                    64,
                    quantization};
    for (int32_t length : lengths_) {
      view_.table_stride = std::max<int64_t>(view_.table_stride, (length + 63) / 64);
    }
    int64_t blocks = 0;
    offsets_ = {0};
    tables_.assign(lengths_.size() * view_.table_stride, 0);
    for (size_t s = 0; s < lengths_.size(); ++s) {
      const int64_t own = (lengths_[s] + 63) / 64;
      for (int64_t b = 0; b < own; ++b) {
        tables_[s * view_.table_stride + b] = static_cast<int32_t>(blocks++);
      }
      offsets_.push_back(static_cast<int32_t>(s) + 1);
    }
    pool_ = ctx.Empty({blocks * static_cast<int64_t>(ops::KvBlockBytes(view_.layout))}, DType::kU8);
    view_.data = pool_.raw();
    view_.block_tables = tables_;
    view_.context_lengths = lengths_;
    q_ = ctx.Empty({static_cast<int64_t>(lengths_.size()), shape.heads, shape.dim}, DType::kBF16);
    Fill(q_);
    Write(blocks);
  }

  void Attend() const { ops::PagedAttention(ctx_, q_, view_, Args(offsets_)); }

  // Whole sequences, each on one thread; the longest come first.
  void AttendWhole() const {
    std::atomic<size_t> next = 0;
    auto work = [&] {
      Context own = ctx_;
      own.threads = 1;
      for (size_t s = next++; s < lengths_.size(); s = next++) {
        ops::KvView view = view_;
        view.block_tables = view.block_tables.subspan(s * view.table_stride, view.table_stride);
        view.context_lengths = std::span(&lengths_[s], 1);
        static constexpr int32_t kOne[] = {0, 1};
        ops::PagedAttention(own, q_.Narrow(static_cast<int64_t>(s), 1), view, Args(kOne));
      }
    };
    std::jthread other(work);
    work();
  }

  double bytes() const { return static_cast<double>(pool_.bytes()); }

 private:
  ops::AttentionArgs Args(std::span<const int32_t> offsets) const {
    return {.scale = 0.125f, .offsets = offsets};
  }

  // Some tokens at a time.
  void Write(int64_t blocks) {
    constexpr int64_t kBlocks = 64;
    Tensor x = ctx_.Empty({kBlocks * 64, shape_.kv_heads, shape_.dim}, DType::kBF16);
    Fill(x);
    std::vector<int64_t> slots(kBlocks * 64);
    for (int64_t b = 0; b < blocks; b += kBlocks) {
      for (int64_t i = 0; i < kBlocks * 64; ++i) {
        slots[i] = b * 64 + i < blocks * 64 ? b * 64 + i : -1;
      }
      ops::WriteKv(ctx_, {x, x, slots, view_.data, view_.layout});
    }
  }

  Context& ctx_;
  const Shape shape_;
  std::vector<int32_t> lengths_, tables_, offsets_;
  ops::KvView view_;
  Tensor pool_, q_;
};

template <typename Run>
double Best(int repeats, const Run& run) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = Now();
    run();
    best = std::min(best, Now() - start);
  }
  return best;
}

void Ragged(Context& ctx, const Shape& shape) {
  std::vector<int32_t> lengths(8, 256);
  lengths[0] = 16384;
  const Cached cached(ctx, shape, lengths);
  double lean = 1e30, whole = 1e30;
  for (int i = 0; i < 5; ++i) {  // in turn, as the machine's speed drifts
    lean = std::min(lean, Best(10, [&] { cached.Attend(); }));
    whole = std::min(whole, Best(10, [&] { cached.AttendWhole(); }));
  }
  std::printf(
      "ragged  1 x 16384 + 7 x 256  H %2ld K %2ld dh %3ld   cut evenly %7.3f ms   whole sequences "
      "%7.3f ms   ratio %4.2f\n",
      shape.heads, shape.kv_heads, shape.dim, lean * 1e3, whole * 1e3, whole / lean);
}

// One sequence, its keys and values in bf16, int8 and int4, in turn.
void Long(Context& ctx, double bandwidth, const Shape& shape, int32_t length) {
  const Cached kinds[] = {{ctx, shape, {length}},
                          {ctx, shape, {length}, ops::KvQuantization::kInt8},
                          {ctx, shape, {length}, ops::KvQuantization::kInt4}};
  double best[] = {1e30, 1e30, 1e30};
  for (int i = 0; i < 10; ++i) {
    for (int kind = 0; kind < 3; ++kind) {
      best[kind] = std::min(best[kind], Best(4, [&] { kinds[kind].Attend(); }));
    }
  }
  constexpr const char* kNames[] = {"bf16", "int8", "int4"};
  for (int kind = 0; kind < 3; ++kind) {
    std::printf(
        "decode  1 x %5d  H %2ld K %2ld dh %3ld  %s %7.3f ms, %4.2f times as fast   %6.1f MB, "
        "%4.2f times as few   read bandwidth %4.2f\n",
        length, shape.heads, shape.kv_heads, shape.dim, kNames[kind], best[kind] * 1e3,
        best[0] / best[kind], kinds[kind].bytes() / 1e6, kinds[0].bytes() / kinds[kind].bytes(),
        kinds[kind].bytes() / best[kind] / bandwidth);
  }
}

// What a call costs beside its tiles: contexts of one tile.
void Short(Context& ctx, const Shape& shape) {
  const Cached cached(ctx, shape, std::vector<int32_t>(8, 64));
  const double seconds = Best(200, [&] { cached.Attend(); });
  std::printf("decode  8 x    64  H %2ld K %2ld dh %3ld   %7.1f us\n", shape.heads, shape.kv_heads,
              shape.dim, seconds * 1e6);
}

}  // namespace
}  // namespace cadre::bench

int main() {
  using namespace cadre;
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = bench::kThreads};
  const double bandwidth = bench::ReadBandwidth(bench::kThreads);
  std::printf("read bandwidth %.1f GB/s; below, shares of it\n", bandwidth / 1e9);
  bench::Ragged(ctx, {16, 2, 128});
  bench::Ragged(ctx, {8, 1, 128});
  bench::Short(ctx, {32, 8, 128});
  for (int32_t length : {8192, 32768}) bench::Long(ctx, bandwidth, {32, 8, 128}, length);
  return 0;
}
