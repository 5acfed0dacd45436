// Batch-1 bf16 decode against the memory's read bandwidth, and a prefill of 512 tokens against the
// GEMM peak, both ceilings measured in the same run:
//   OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=300 build/release/bench_decode [tokens]
// Runs the decoder over paged blocks as the engine does, without its queue. A decoded token reads
// every weight that multiplies once, and the keys and values before it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "bench/peak.h"
#include "bench/shapes.h"
#include "core/host_allocator.h"
#include "core/ops/gemm.h"
#include "core/ops/linear_cross_entropy.h"
#include "memory/kv_block_pool.h"
#include "model/initialize.h"
#include "model/model.h"
#include "model/model_cost.h"
#include "serving/engine.h"

namespace cadre::bench {
namespace {

constexpr int kBlockSize = 64;
constexpr int64_t kPrompt = 512;

// One sequence in blocks of its own.
struct Paged {
  Context& ctx;
  Model& model;
  KvBlockPool pool;
  std::vector<int32_t> table, lengths{0};
  std::vector<int64_t> slots;

  Paged(Context& ctx, Model& model, int64_t tokens)
      : ctx(ctx),
        model(model),
        pool(*ctx.allocator, Layouts(model), (tokens + kBlockSize - 1) / kBlockSize) {
    while (auto block = pool.Allocate()) table.push_back(*block);
  }

  static std::vector<ops::KvLayout> Layouts(const Model& model) {
    std::vector<ops::KvLayout> layouts;
    for (const LayerSpec& layer : model.spec().layers) {
      layouts.push_back(KvLayoutOf(layer.attention, DType::kBF16, kBlockSize));
    }
    return layouts;
  }

  // `count` tokens at `begin`; the last one's logits.
  Tensor Forward(int64_t begin, int64_t count) {
    std::vector<int32_t> ids, positions;
    slots.clear();
    for (int64_t i = begin; i < begin + count; ++i) {
      ids.push_back(static_cast<int32_t>(i * 7919 % model.spec().vocab));
      positions.push_back(static_cast<int32_t>(i));
      slots.push_back(table[i / kBlockSize] * int64_t{kBlockSize} + i % kBlockSize);
    }
    lengths[0] = static_cast<int32_t>(begin + count);
    Batch batch{.ids = Tensor::Of<int32_t>(*ctx.allocator, {count}, ids),
                .positions = Tensor::Of<int32_t>(*ctx.allocator, {count}, positions),
                .offsets = {0, static_cast<int32_t>(count)}};
    for (int layer = 0; layer < pool.layers(); ++layer) {
      batch.kv.push_back({.view = {.data = pool.data(layer),
                                   .layout = pool.layout(layer),
                                   .block_tables = table,
                                   .table_stride = static_cast<int64_t>(table.size()),
                                   .context_lengths = lengths},
                          .slots = slots});
    }
    Tensor hidden = model.decoder().Forward(ctx, batch).hidden.value;
    return ops::Logits(ctx, hidden.Narrow(count - 1, 1), model.decoder().head());
  }
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) {
  using namespace cadre;
  const int64_t tokens = argc > 1 ? std::max(8, std::atoi(argv[1])) : 128;
  HostAllocator allocator;
  PackedWeights packed;
  Context ctx{.allocator = &allocator, .threads = 2, .packed = &packed};
  std::unique_ptr<Model> model = std::move(*CreateModel(ctx, bench::BenchConfig(false), {}));
  ctx.parameters = &model->parameters();
  InitializeParameters(ctx, 1);
  bench::Paged paged(ctx, *model, bench::kPrompt + tokens);
  paged.Forward(0, bench::kPrompt);
  double peak = 0, bandwidth = 0;
  std::vector<double> prefill, decode;
  for (int i = 0; i < 5; ++i) {
    peak = std::max(peak, bench::GemmPeak(2, true, 5));
    const double start = bench::Now();
    paged.Forward(0, bench::kPrompt);
    prefill.push_back(bench::Now() - start);
  }
  for (int64_t i = 0; i < tokens; ++i) {
    if (i % 32 == 0) bandwidth = std::max(bandwidth, bench::ReadBandwidth(2, 1L << 29, 3));
    const double start = bench::Now();
    paged.Forward(bench::kPrompt + i, 1);
    decode.push_back(bench::Now() - start);
  }
  const ParameterCounts counts = CountParameters(model->spec());
  const double context = bench::kPrompt + static_cast<double>(tokens) / 2;
  const double bytes = 2.0 * static_cast<double>(counts.active - counts.embedding) +
                       context * static_cast<double>(KvBytesPerToken(model->spec(), 2));
  const double step = bench::Median(decode), read = bench::Median(prefill);
  // A third of the training FLOPs; the head runs for one token only.
  const double head = 2.0 * static_cast<double>(model->spec().vocab * model->spec().hidden);
  const double flops =
      (ModelFlopsPerToken(model->spec(), bench::kPrompt) / 3 - head) * bench::kPrompt + head;
  std::printf(
      "{\"decode_tokens_per_second\": %.1f, \"decode_gb_per_s\": %.1f, \"read_gb_per_s\": %.1f, "
      "\"decode_of_bandwidth\": %.3f, \"prefill_tokens_per_second\": %.0f, \"gemm_peak_gflops\": "
      "%.0f, "
      "\"prefill_of_peak\": %.3f}\n",
      1 / step, bytes / step / 1e9, bandwidth / 1e9, bytes / step / bandwidth,
      bench::kPrompt / read, peak / 1e9, flops / read / peak);
  return 0;
}
