// Decode of one sequence against the memory's read bandwidth, a prefill of 512 tokens against the
// GEMM peak, and decode of 32 sequences, ceilings measured in the same run:
//   OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=300 build/release/bench_decode
//       [--weights stored|int8|int4] [--model FILE.gguf] [--large] [--tokens N] [--sequences N]
//       [--context N]
// The one sequence has 512 tokens before it, the many --context each (512).
// The ceilings are the best of several bursts, a step's time is the median (and the best, which
// says more on a busy machine). Runs the decoder over paged blocks as the engine does, without its
// queue. A decoded token reads every weight that multiplies once, and the keys and values before
// it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
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

struct Flags {
  std::string model, weights = "stored";
  bool large = false;
  int64_t tokens = 128, sequences = 32, context = kPrompt;
};

Flags ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--large") {
      flags.large = true;
      continue;
    }
    ++i;
    if (name == "--model") flags.model = value;
    if (name == "--weights") flags.weights = value;
    if (name == "--tokens") flags.tokens = std::max(8, std::atoi(value));
    if (name == "--context") flags.context = std::clamp<int64_t>(std::atoi(value), 1, kPrompt);
    if (name == "--sequences") flags.sequences = std::max(1, std::atoi(value));
  }
  return flags;
}

// Sequences in blocks of their own.
class Paged {
 public:
  Paged(Context& ctx, Model& model, int64_t sequences, int64_t tokens)
      : ctx_(ctx),
        model_(model),
        blocks_((tokens + kBlockSize - 1) / kBlockSize),
        pool_(*ctx.allocator, Layouts(model), blocks_ * sequences),
        lengths_(static_cast<size_t>(sequences)) {
    while (auto block = pool_.Allocate()) table_.push_back(*block);
  }

  // `count` tokens at `begin` of each of the first `sequences`; their last ones' logits.
  Tensor Forward(int64_t sequences, int64_t begin, int64_t count) {
    std::vector<int32_t> ids, positions, offsets = {0};
    slots_.clear();
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t i = begin; i < begin + count; ++i) {
        ids.push_back(static_cast<int32_t>((i + s) * 7919 % model_.spec().vocab));
        positions.push_back(static_cast<int32_t>(i));
        const int64_t block = table_[static_cast<size_t>(s * blocks_ + i / kBlockSize)];
        slots_.push_back(block * kBlockSize + i % kBlockSize);
      }
      offsets.push_back(static_cast<int32_t>(ids.size()));
      lengths_[static_cast<size_t>(s)] = static_cast<int32_t>(begin + count);
    }
    const auto all = static_cast<int64_t>(ids.size());
    Batch batch{.ids = Tensor::Of<int32_t>(*ctx_.allocator, {all}, ids),
                .positions = Tensor::Of<int32_t>(*ctx_.allocator, {all}, positions),
                .offsets = offsets};
    for (int layer = 0; layer < pool_.layers(); ++layer) {
      batch.kv.push_back(
          {.view = {.data = pool_.data(layer),
                    .layout = pool_.layout(layer),
                    .block_tables = {table_.data(), static_cast<size_t>(sequences * blocks_)},
                    .table_stride = blocks_,
                    .context_lengths = {lengths_.data(), static_cast<size_t>(sequences)}},
           .slots = slots_});
    }
    const Tensor hidden = model_.decoder().Forward(ctx_, batch).hidden.value;
    return ops::Logits(ctx_, count == 1 ? hidden : hidden.Narrow(all - 1, 1),
                       model_.decoder().head());
  }

 private:
  static std::vector<ops::KvLayout> Layouts(const Model& model) {
    std::vector<ops::KvLayout> layouts;
    for (const LayerSpec& layer : model.spec().layers) {
      layouts.push_back(KvLayoutOf(layer.attention, DType::kBF16, kBlockSize));
    }
    return layouts;
  }

  Context& ctx_;
  Model& model_;
  int64_t blocks_;  // of a sequence
  KvBlockPool pool_;
  std::vector<int32_t> table_, lengths_;
  std::vector<int64_t> slots_;
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Of what one token multiplies by.
double WeightBytes(Model& model) {
  ParameterStore& store = model.parameters();
  auto bytes = static_cast<double>(store.quantized_bytes());
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    const bool table = spec.layer < 0 && spec.shape.rank() == 2;
    if (table && id != model.decoder().head()) {
      // An embedding is looked up in.
      if (spec.quantized) {
        for (const QuantizedMatrix& run : store.quantized(id)->front()) {
          bytes -= static_cast<double>(run.bytes());
        }
      }
      continue;
    }
    if (!spec.quantized) bytes += 2.0 * static_cast<double>(spec.shape.numel());
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<Model>> MakeModel(Context& ctx, const Flags& flags) {
  ModelOptions options;
  CADRE_ASSIGN_OR_RETURN(options.weights, ParseWeightFormat(flags.weights));
  options.weights = ForProductsAlone(options.weights, options.dtype);
  if (!flags.model.empty()) return LoadModel(ctx, flags.model, options);
  CADRE_ASSIGN_OR_RETURN(
      auto model, CreateModel(ctx, flags.large ? LargeConfig() : BenchConfig(false), options));
  ctx.parameters = &model->parameters();
  InitializeParameters(ctx, 1);
  return model;
}

struct Times {
  double bandwidth = 0, peak = 0;         // bytes/s, FLOP/s: the best seen
  std::vector<double> one, many, prompt;  // seconds of a step
};

Times Run(Context& ctx, Model& model, const Flags& flags) {
  Times times;
  Paged paged(ctx, model, flags.sequences, kPrompt + flags.tokens);
  paged.Forward(1, 0, kPrompt);
  for (int i = 0; i < 5; ++i) {
    times.peak = std::max(times.peak, GemmPeak(2, true, 5));
    const double start = Now();
    paged.Forward(1, 0, kPrompt);
    times.prompt.push_back(Now() - start);
  }
  for (int64_t i = 0; i < flags.tokens; ++i) {
    if (i % 16 == 0) times.bandwidth = std::max(times.bandwidth, ReadBandwidth(2, 1L << 29, 2));
    double start = Now();
    paged.Forward(1, kPrompt + i, 1);
    times.one.push_back(Now() - start);
    if (i % 8 != 0) continue;
    start = Now();
    paged.Forward(flags.sequences, flags.context + i, 1);
    times.many.push_back(Now() - start);
  }
  return times;
}

void Print(const Flags& flags, Model& model, const Times& times) {
  const DecoderSpec& spec = model.spec();
  const double context = kPrompt + static_cast<double>(flags.tokens) / 2;
  const double weights = WeightBytes(model);
  const double bytes = weights + context * static_cast<double>(KvBytesPerToken(spec, 2));
  const double step = Median(times.one), best = *std::ranges::min_element(times.one);
  const double read = Median(times.prompt), many = Median(times.many);
  // A third of the training FLOPs; the head runs for one token only.
  const double head = 2.0 * static_cast<double>(spec.vocab * spec.hidden);
  const double flops = (ModelFlopsPerToken(spec, kPrompt) / 3 - head) * kPrompt + head;
  std::printf(
      "{\"weights\": \"%s\", \"weight_bytes\": %.0f, \"decode_tokens_per_second\": %.1f, "
      "\"decode_gb_per_s\": %.1f, \"read_gb_per_s\": %.1f, \"decode_of_bandwidth\": %.3f, "
      "\"best_decode_of_bandwidth\": %.3f, "
      "\"prefill_tokens_per_second\": %.0f, \"gemm_peak_gflops\": %.0f, \"prefill_of_peak\": "
      "%.3f, \"sequences\": %ld, \"context\": %ld, \"batch_tokens_per_second\": %.1f}\n",
      flags.model.empty() ? flags.weights.c_str() : flags.model.c_str(), weights, 1 / step,
      bytes / step / 1e9, times.bandwidth / 1e9, bytes / step / times.bandwidth,
      bytes / best / times.bandwidth, kPrompt / read, times.peak / 1e9, flops / read / times.peak,
      static_cast<long>(flags.sequences), static_cast<long>(flags.context),
      static_cast<double>(flags.sequences) / many);
}

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) {
  using namespace cadre;
  const bench::Flags flags = bench::ParseFlags(argc, argv);
  HostAllocator allocator;
  PackedWeights packed;
  Context ctx{.allocator = &allocator, .threads = 2, .packed = &packed};
  auto model = bench::MakeModel(ctx, flags);
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", std::string(Message(model.status())).c_str());
    return 1;
  }
  ctx.parameters = &(*model)->parameters();
  bench::Print(flags, **model, bench::Run(ctx, **model, flags));
  return 0;
}
