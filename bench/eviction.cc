// What KV eviction costs and saves.
//
//   bench_eviction --model DIR --texts FILE.jsonl [--policies a,b] [--budgets 0.1,0.2] [--count N]
// Perplexity of each line's tail after its prompt ({"prompt": ..., "tail": ...}; see
// bench/eviction_text.py), with the full cache and with each policy at budgets that are shares of
// the prompt.
//
//   OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=300 bench_eviction --speed [--large] [--context N]
//                                                             [--share 0.05]
// Attention and whole steps of one sequence that decodes at that context, with the full cache and
// with a share of it, of a random model; each step against the bytes that it reads over the
// bandwidth measured just before it.
//
// Both run what the engine runs (serving/evicting_sequence.h), without its queue.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "bench/peak.h"
#include "bench/shapes.h"
#include "core/host_allocator.h"
#include "core/ops/attention.h"
#include "core/ops/gemm.h"
#include "model/initialize.h"
#include "model/tokenizer.h"
#include "serving/kv_plan.h"
#include "serving/step_forward.h"

namespace cadre::bench {
namespace {

struct Flags {
  std::string model, texts;
  std::vector<std::string> policies = {"streaming_llm", "snapkv", "pyramidkv",
                                       "cake",          "h2o",    "tova"};
  std::vector<double> budgets = {0.1, 0.15, 0.2};
  int count = 1 << 30, threads = 2;
  bool speed = false, large = false;
  int64_t context = 32768;
  double share = 0.05;
  int block_size = 64;
  CakeOptions cake;
};

std::unique_ptr<KvEvictionPolicy> Policy(const std::string& name, const CakeOptions& cake) {
  auto policy = MakeEvictionPolicy(name, cake);
  CADRE_CHECK(policy.ok(), "{}", Message(policy.status()));
  return *std::move(policy);
}

// One sequence on its own.
class Decoding {
 public:
  Decoding(Context& ctx, const Model& model, std::unique_ptr<KvEvictionPolicy> policy,
           const EvictionShape& shape, int64_t answer, int block_size)
      : ctx_(ctx), model_(model) {
    std::vector<ops::KvLayout> layouts;
    for (const LayerSpec& layer : model.spec().layers) {
      layouts.push_back(KvLayoutOf(layer.attention, model.dtype(), block_size));
    }
    const KvBlockPool sizes(*ctx.allocator, layouts, 1);
    const int64_t blocks = KeptKv(sizes, *policy, shape, answer).blocks_needed();
    cache_.emplace(*ctx.allocator, layouts, blocks, KvCacheOptions{.prefix_caching = false});
    sequence_.emplace(cache_->pool(), std::move(policy), shape, answer);
    CADRE_CHECK(cache_->Extend(kv_, blocks * block_size), "{} blocks", blocks);
    sequence_->Hold(*cache_, kv_.blocks());
  }
  ~Decoding() { cache_->Free(kv_); }

  KeptKv& kept() { return sequence_->kept(); }
  const KvBlockPool& pool() const { return cache_->pool(); }

  LogitRows Read(std::span<const int32_t> prompt) {
    while (!sequence_->read()) {
      sequence_->Read({.ctx = ctx_, .model = model_, .cache = *cache_, .prompt = prompt}, 4096);
    }
    return ComputeLogits(ctx_, model_.decoder(), sequence_->last_hidden());
  }

  LogitRows Step(int32_t token, int64_t index) {
    sequence_->Append(index);
    const PlannedTokens run{&kv_, std::span(&token, 1), index, &*sequence_};
    StepPlan plan = PlanTokens(std::span(&run, 1), *cache_);
    StepForward forward(ctx_, model_, nullptr);
    BatchObserver observer{
        [&](Context& ctx, const LayerQueries& queries) { sequence_->Settle(ctx, queries, {}); }};
    if (sequence_->looks()) observer.sequences = {0};
    forward.Run(std::span(&plan, 1), cache_->pool(), 0, observer);
    return forward.Logits(0, RowRange{0, 1});
  }

 private:
  Context& ctx_;
  const Model& model_;
  std::optional<KvCache> cache_;
  std::optional<EvictingSequence> sequence_;
  KvSequence kv_;
};

struct Text {
  std::vector<int32_t> prompt, tail;
};

// Those that are longer than the model's context are left out.
std::vector<Text> ReadTexts(const Flags& flags, size_t context) {
  auto tokenizer = Tokenizer::Load(flags.model);
  CADRE_CHECK(tokenizer.ok(), "{}", Message(tokenizer.status()));
  std::ifstream lines(flags.texts);
  std::vector<Text> texts;
  for (std::string line;
       std::getline(lines, line) && static_cast<int>(texts.size()) < flags.count;) {
    const auto text = nlohmann::json::parse(line);
    Text ids{(*tokenizer)->Encode(text["prompt"].get<std::string>()),
             (*tokenizer)->Encode(text["tail"].get<std::string>())};
    if (ids.prompt.size() + ids.tail.size() <= context) texts.push_back(std::move(ids));
  }
  CADRE_CHECK(!texts.empty(), "{}: no texts", flags.texts);
  return texts;
}

struct Loss {
  double sum = 0, square = 0;  // of the texts' mean losses
  int64_t texts = 0;

  double mean() const { return sum / static_cast<double>(texts); }
  double error() const {
    const auto n = static_cast<double>(texts);
    return std::sqrt(std::max(square / n - mean() * mean(), 0.0) / n);
  }
};

double TailLoss(Context& ctx, const Model& model, const Text& text, const Flags& flags,
                const std::string& policy, int64_t budget) {
  const EvictionShape shape{.tokens = static_cast<int64_t>(text.prompt.size()),
                            .layers = static_cast<int64_t>(model.spec().layers.size()),
                            .budget = budget};
  Decoding decoding(ctx, model, Policy(policy, flags.cake), shape,
                    static_cast<int64_t>(text.tail.size()), flags.block_size);
  LogitRows rows = decoding.Read(text.prompt);
  double loss = 0;
  for (size_t i = 0; i < text.tail.size(); ++i) {
    if (i > 0) rows = decoding.Step(text.tail[i - 1], shape.tokens + static_cast<int64_t>(i) - 1);
    loss += static_cast<double>(rows.lse[0] - rows.row(0)[static_cast<size_t>(text.tail[i])]);
  }
  return loss / static_cast<double>(text.tail.size());
}

void Perplexities(Context& ctx, const Model& model, const Flags& flags) {
  const std::vector<Text> texts =
      ReadTexts(flags, static_cast<size_t>(model.config().model.max_position_embeddings()));
  const auto measure = [&](const std::string& policy, double share) {
    Loss loss;
    for (const Text& text : texts) {
      const auto budget = static_cast<int64_t>(share * static_cast<double>(text.prompt.size()));
      const double one = TailLoss(ctx, model, text, flags, policy, budget);
      loss.sum += one;
      loss.square += one * one;
      ++loss.texts;
    }
    std::printf("| %-13s | %5.2f | %8.3f | %.4f +- %.4f |\n", share > 1 ? "full" : policy.c_str(),
                std::min(share, 1.0), std::exp(loss.mean()), loss.mean(), loss.error());
    std::fflush(stdout);
  };
  std::printf("%zu texts, the first one of %zu tokens and a tail of %zu\n", texts.size(),
              texts.front().prompt.size(), texts.front().tail.size());
  std::printf("| policy        | share | tail ppl | loss of a tail    |\n");
  measure("snapkv", 2);
  for (const double share : flags.budgets) {
    for (const std::string& policy : flags.policies) measure(policy, share);
  }
}

void FillRandomly(Context& ctx, Decoding& decoding, int64_t tokens) {
  const KvBlockPool& pool = decoding.pool();
  const ops::KvLayout& layout = pool.layout(0);
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  const auto draw = [&](int64_t dim) {
    Tensor x = ctx.Empty({1024, layout.kv_heads, dim}, layout.dtype);
    for (int64_t i = 0; i < x.numel(); ++i) x.data<BF16>()[i] = static_cast<BF16>(normal(random));
    return x;
  };
  const Tensor k = draw(layout.key_dim), v = draw(layout.value_dim);
  KeptKv& kept = decoding.kept();
  for (int layer = 0; layer < pool.layers(); ++layer) {
    kept.BeginLayer(layer, {});
    for (int64_t begin = 0; begin < tokens; begin += 1024) {
      std::vector<int64_t> slots(1024, -1);
      for (int64_t i = 0; i < std::min<int64_t>(1024, tokens - begin); ++i) {
        slots[static_cast<size_t>(i)] = kept.Slot(layer, begin + i);
      }
      ops::WriteKv(ctx, {k, v, slots, pool.data(0), layout});
    }
    KeyAttention attention{.kv_heads = layout.kv_heads, .keys = tokens - 32};
    for (int64_t i = 0; i < attention.keys * layout.kv_heads; ++i) {
      attention.mean.push_back(std::abs(normal(random)));
      attention.variance.push_back(1e-4f * std::abs(normal(random)));
    }
    attention.entropy = attention.total_variance = 1;
    kept.EndLayer(layer, attention);
  }
}

struct Times {
  double attention = 1e30, upkeep = 1e30;  // of all layers
  std::vector<double> steps, shares;  // of a step, the time that its bytes take at the bandwidth
};

// Attention alone over all layers, and the policy's look at it besides.
void TimeAttention(Context& ctx, const Model& model, Decoding& decoding, bool looks, Times* times) {
  const AttentionSpec& spec = model.spec().layers.front().attention;
  const KvBlockPool& pool = decoding.pool();
  const Tensor q = ctx.Zeros({1, spec.heads, spec.head_dim}, model.dtype());
  const Tensor lse = ctx.Empty({1, spec.heads}, DType::kF32);
  const int32_t offsets[] = {0, 1};
  KeyAttention seen{.kv_heads = pool.layout(0).kv_heads};
  double attention = 0, upkeep = 0;
  for (int layer = 0; layer < pool.layers(); ++layer) {
    const auto length = static_cast<int32_t>(decoding.kept().count(layer));
    const auto table = decoding.kept().table(layer);
    const ops::KvView view{.data = pool.data(0),
                           .layout = pool.layout(0),
                           .block_tables = table,
                           .table_stride = static_cast<int64_t>(table.size()),
                           .context_lengths = std::span(&length, 1)};
    const int32_t rows[] = {0};
    const Tensor scores = ctx.Empty({1, spec.heads, (length + 63) / 64 * 64}, DType::kF32);
    ops::AttentionTold told{.lse = lse};
    if (looks) told.scores = scores, told.score_rows = rows;
    double start = Now();
    ops::PagedAttention(ctx, q, view, {.scale = 0.1f, .offsets = offsets}, {}, told);
    attention += Now() - start;
    if (!looks) continue;
    start = Now();
    WeighKeys(ops::ObserveAttention(ctx, {.q = q,
                                          .kv = view,
                                          .scale = 0.1f,
                                          .keys = length,
                                          .lse = lse,
                                          .scores = scores.Reshape({spec.heads, scores.dim(2)})}),
              1, false, &seen);
    upkeep += Now() - start;
  }
  times->attention = std::min(times->attention, attention);
  times->upkeep = std::min(times->upkeep, upkeep);
}

// Of what one token multiplies by.
double WeightBytes(Model& model) {
  double bytes = 0;
  const ParameterStore& store = model.parameters();
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    const bool embedding = spec.layer < 0 && spec.shape.rank() == 2 && id != model.decoder().head();
    if (!embedding) bytes += 2.0 * static_cast<double>(spec.shape.numel());
  }
  return bytes;
}

double KvBytes(Decoding& decoding) {
  double slots = 0;
  for (int layer = 0; layer < decoding.pool().layers(); ++layer) {
    slots += static_cast<double>(decoding.kept().count(layer));
  }
  return slots * static_cast<double>(decoding.pool().layout(0).block_bytes()) /
         static_cast<double>(decoding.pool().block_size());
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

void Speed(Context& ctx, Model& model, const Flags& flags) {
  const auto budget = static_cast<int64_t>(flags.share * static_cast<double>(flags.context));
  const EvictionShape shape{.tokens = flags.context,
                            .layers = static_cast<int64_t>(model.spec().layers.size()),
                            .budget = budget};
  const auto make = [&](const char* name, int64_t keep) {
    auto decoding = std::make_unique<Decoding>(
        ctx, model, Policy(name, flags.cake),
        EvictionShape{.tokens = shape.tokens, .layers = shape.layers, .budget = keep}, 256,
        flags.block_size);
    FillRandomly(ctx, *decoding, flags.context);
    return decoding;
  };
  struct Way {
    const char* name;
    std::unique_ptr<Decoding> decoding;
    Times times = {};
  };
  std::vector<Way> ways;
  ways.push_back({"full", make("snapkv", flags.context)});
  ways.push_back({"snapkv", make("snapkv", budget)});
  ways.push_back({"cake", make("cake", budget)});
  std::vector<double> bandwidths;
  const double weights = WeightBytes(model);
  for (int round = 0; round < 40; ++round) {
    for (Way& way : ways) {
      bandwidths.push_back(ReadBandwidth(flags.threads, 1L << 28, 2));
      const double start = Now();
      way.decoding->Step(round, flags.context + round);
      way.times.steps.push_back(Now() - start);
      way.times.shares.push_back((weights + KvBytes(*way.decoding)) / bandwidths.back() /
                                 way.times.steps.back());
      if (round % 4 == 0)
        TimeAttention(ctx, model, *way.decoding, std::string(way.name) == "cake", &way.times);
    }
  }
  const double full = ways.front().times.attention;
  std::printf("context %ld, budget %ld, weights %.0f MB, read bandwidth %.1f GB/s\n",
              static_cast<long>(flags.context), static_cast<long>(budget), weights / 1e6,
              Median(bandwidths) / 1e9);
  std::printf(
      "| cache  | KV MB | attention ms | full over it | and the policy's look | step ms | bytes / "
      "bandwidth over step |\n");
  for (Way& way : ways) {
    const Times& t = way.times;
    const double looked = t.attention + t.upkeep;
    std::printf("| %-6s | %5.0f | %8.3f | %5.1fx | %5.1fx | %7.2f | %.2f |\n", way.name,
                KvBytes(*way.decoding) / 1e6, t.attention * 1e3, full / t.attention, full / looked,
                Median(t.steps) * 1e3, Median(t.shares));
  }
}

absl::StatusOr<std::unique_ptr<Model>> MakeModel(Context& ctx, const Flags& flags) {
  if (!flags.model.empty()) return LoadModel(ctx, flags.model, {});
  HfConfig config = flags.large ? LargeConfig() : BenchConfig(false);
  CADRE_ASSIGN_OR_RETURN(
      auto model,
      CreateModel(ctx, std::move(config), {.decoder = {.max_position = flags.context + 512}}));
  ctx.parameters = &model->parameters();
  InitializeParameters(ctx, 1);
  return model;
}

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) {
  using namespace cadre;
  bench::Flags flags;
  CLI::App app("what KV eviction costs and saves");
  app.add_option("--model", flags.model, "Hugging Face folder");
  app.add_option("--texts", flags.texts, "prompts and tails, JSONL");
  app.add_option("--policies", flags.policies)->delimiter(',');
  app.add_option("--budgets", flags.budgets, "shares of the prompt")->delimiter(',');
  app.add_option("--count", flags.count, "texts");
  app.add_option("--threads", flags.threads);
  app.add_flag("--speed", flags.speed);
  app.add_flag("--large", flags.large, "--speed: 850M parameters instead of 162M");
  app.add_option("--context", flags.context)->check(CLI::Range(1024, 1 << 20));
  app.add_option("--share", flags.share)->check(CLI::Range(0.001, 1.0));
  app.add_option("--block-size", flags.block_size)->check(CLI::IsMember({16, 32, 64, 128}));
  app.add_option("--cake-tau1", flags.cake.tau1);
  app.add_option("--cake-tau2", flags.cake.tau2);
  app.add_option("--cake-gamma", flags.cake.gamma);
  CLI11_PARSE(app, argc, argv);
  HostAllocator allocator;
  PackedWeights packed;
  Context ctx{.allocator = &allocator, .threads = flags.threads, .packed = &packed};
  auto model = bench::MakeModel(ctx, flags);
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", std::string(Message(model.status())).c_str());
    return 1;
  }
  ctx.parameters = &(*model)->parameters();
  if (flags.speed) {
    bench::Speed(ctx, **model, flags);
  } else {
    bench::Perplexities(ctx, **model, flags);
  }
  return 0;
}
