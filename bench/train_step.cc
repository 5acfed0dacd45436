// Model FLOP utilization of a training step against the GEMM peak of the same run, in bf16 on two
// threads: 16,384 tokens a step in sequences of 1,024, vocabulary 32k.
//   OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=300
//     build/release/bench_train_step [dense|moe] [steps] [trace.json]
// Prints one JSON document; tokens_per_second and mfu are medians over the steps.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "bench/peak.h"
#include "bench/shapes.h"
#include "core/host_allocator.h"
#include "core/ops/gemm.h"
#include "core/random.h"
#include "core/trace.h"
#include "model/initialize.h"
#include "model/model.h"
#include "model/model_cost.h"
#include "training/gradient_norm.h"
#include "training/optimizer.h"
#include "training/train_step.h"

namespace cadre::bench {
namespace {

constexpr int64_t kTokens = 16384, kSequence = 1024, kMicro = 4;

StepBatches RandomStep(int64_t vocab, uint64_t seed) {
  StepBatches step;
  const RandomKey key(seed, "bench");
  for (int64_t begin = 0; begin < kTokens; begin += kMicro * kSequence) {
    PackedBatch& packed = step.micro.emplace_back();
    packed.offsets = packed.row_offsets = {0};
    for (int64_t i = 0; i < kMicro * kSequence; ++i) {
      packed.ids.push_back(static_cast<int32_t>(key.U64(begin + i) % vocab));
      packed.targets.push_back(static_cast<int32_t>(key.U64(begin + i + 1) % vocab));
      packed.positions.push_back(static_cast<int32_t>(i % kSequence));
      if ((i + 1) % kSequence == 0) packed.offsets.push_back(static_cast<int32_t>(i + 1));
    }
    packed.row_offsets = packed.offsets;
    packed.loss_tokens = kMicro * kSequence;
  }
  step.tokens = step.loss_tokens = kTokens;
  step.sequences = kTokens / kSequence;
  return step;
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

struct Run {
  HostAllocator allocator;
  PackedWeights packed;
  Context ctx{.allocator = &allocator, .threads = 2, .packed = &packed};
  config::TrainConfig config;
  std::unique_ptr<Model> model;
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<TrainStep> step;
  std::vector<ParamChunk> chunks;

  explicit Run(bool mixture) {
    model = std::move(*CreateModel(ctx, BenchConfig(mixture), {.gradients = true}));
    ctx.parameters = &model->parameters();
    InitializeParameters(ctx, 1);
    optimizer = std::move(*MakeOptimizer(config.optimizer(), model->parameters(), allocator));
    optimizer->AdoptWeights();
    step = std::make_unique<TrainStep>(*model, config,
                                       Layout{.microbatches = kTokens / (kMicro * kSequence)});
    chunks = TrainableChunks(model->parameters());
  }

  double Once(int index, double* loss) {
    StepBatches batches = RandomStep(model->spec().vocab, static_cast<uint64_t>(index));
    const double start = Now();
    *loss = step->Run(ctx, batches)->cross_entropy;
    const double norm = std::sqrt(SquaredNorm(ctx, model->parameters(), chunks));
    TraceScope scope(ctx.trace, "optimizer");
    optimizer->Step(ctx, {.lr = 1e-4, .gradient_scale = ClipFactor(norm, 1.0)});
    return Now() - start;
  }
};

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) {
  using namespace cadre;
  const bool mixture = argc > 1 && std::string(argv[1]) == "moe";
  const int steps = argc > 2 ? std::max(1, std::atoi(argv[2])) : 3;
  bench::Run run(mixture);
  std::unique_ptr<Trace> trace;
  if (argc > 3) {
    trace = std::move(*Trace::Create(argv[3]));
    run.ctx.trace = trace.get();
  }
  double peak = bench::GemmPeak(2, true), loss = 0;
  run.Once(0, &loss);
  std::vector<double> seconds;
  for (int i = 1; i <= steps; ++i) {
    seconds.push_back(run.Once(i, &loss));
    // The best of the whole run: a neighbour on the machine must not flatter the ratio.
    peak = std::max(peak, bench::GemmPeak(2, true));
  }
  const double step = bench::Median(seconds), rate = bench::kTokens / step;
  const double flops = ModelFlopsPerToken(run.model->spec(), bench::kSequence);
  const ParameterCounts counts = CountParameters(run.model->spec());
  std::printf(
      "{\"model\": \"%s\", \"parameters\": %ld, \"active\": %ld, \"tokens_per_second\": %.0f, "
      "\"step_seconds\": %.2f, \"gemm_peak_gflops\": %.0f, \"mfu\": %.3f, \"loss\": %.4f, "
      "\"peak_gib\": %.2f}\n",
      mixture ? "moe" : "dense", counts.total, counts.active, rate, step, peak / 1e9,
      rate * flops / peak, loss, static_cast<double>(run.allocator.usage().peak_bytes) / (1 << 30));
  return 0;
}
