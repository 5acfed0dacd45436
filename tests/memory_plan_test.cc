// What a run's tensors held at their fullest moment against what it planned for them. The whole
// process is measured in tests/e2e/memory_test.py.
#include "training/memory_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>

#include "parallel/test_ranks.h"
#include "tests/training_run.h"
#include "training/layout_needs.h"
#include "training/plan_advice.h"

namespace cadre {
namespace {

using testing_run::OpenRun;
using testing_run::ParseTrainConfig;
using testing_run::TempFolder;

constexpr int kVocabulary = 1024;

const char kRun[] = R"(
data: {seq_len: 256}
lr_schedule: {warmup_steps: 1}
eval: {interval: 0}
log: {tensorboard: false}
train_steps: 3
checkpoint: {interval: 2}
)";

const char kLlama[] =
    "model_type: llama, hidden_size: 256, intermediate_size: 768, num_hidden_layers: 4, "
    "num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 1024";

const char kMoe[] =
    "model_type: qwen3_moe, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 3, "
    "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 64, norm_topk_prob: true, "
    "vocab_size: 1024";

const char kLatent[] =
    "model_type: deepseek_v3, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 3, "
    "num_attention_heads: 8, num_key_value_heads: 8, q_lora_rank: 64, kv_lora_rank: 64, "
    "qk_nope_head_dim: 32, qk_rope_head_dim: 16, v_head_dim: 32, n_group: 1, topk_group: 1, "
    "first_k_dense_replace: 1, routed_scaling_factor: 1.0, norm_topk_prob: true, vocab_size: 1024";

std::string Model(const char* base, const char* more) {
  return std::string("model: {") + base + ", " + more + "}\n";
}

struct Measured {
  MemoryPlan plan;
  double peak = 0;
};

Measured Train(const std::string& yaml) {
  TempFolder folder;
  auto written = testing_run::WriteCorpus(folder / "corpus", kVocabulary, 400, 5);
  CADRE_CHECK(written.ok(), "{}", Message(written));
  config::TrainConfig config = ParseTrainConfig(kRun + yaml);
  config.mutable_data()->add_sources()->set_path(folder / "corpus");
  auto trainer = OpenRun(config, folder / "run", 2);
  CADRE_CHECK(trainer.ok(), "{}", Message(trainer.status()));
  const absl::Status status = (*trainer)->Run();
  CADRE_CHECK(status.ok(), "{}", Message(status));
  return {(*trainer)->plan(), static_cast<double>((*trainer)->peak_bytes())};
}

void ExpectPlanned(const std::string& yaml) {
  const Measured got = Train(yaml);
  const double ratio = got.peak / static_cast<double>(got.plan.tensors());
  EXPECT_GT(ratio, 0.85) << got.plan.ToString() << yaml;
  EXPECT_LT(ratio, 1.15) << got.plan.ToString() << yaml;
}

const char kWide[] = "global_batch_size: 16\nmicro_batch_size: 16\n";
const char kNarrow[] = "global_batch_size: 4\nmicro_batch_size: 1\n";

const char kTopTwo[] = "num_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 256";

const char kTopTwoShared[] =
    "n_routed_experts: 8, n_shared_experts: 1, num_experts_per_tok: 2, moe_intermediate_size: 128";

TEST(MemoryPlan, Dense) {
  ExpectPlanned(Model(kLlama, "tie_word_embeddings: true") + "dtype: bf16\n" + kWide);
  ExpectPlanned(Model(kLlama, "tie_word_embeddings: false") + "dtype: f32\n" + kNarrow);
}

TEST(MemoryPlan, Mixture) {
  ExpectPlanned(Model(kMoe, kTopTwo) + "dtype: bf16\n" + kWide);
  ExpectPlanned(Model(kMoe, kTopTwo) + "dtype: f32\n" + kNarrow);
}

// Every rank's tensors against its plan, which is what PlanRanks says from the configuration alone.
void ExpectPlannedOver(int world, const std::string& yaml) {
  TempFolder folder;
  auto written = testing_run::WriteCorpus(folder / "corpus", kVocabulary, 400, 5);
  CADRE_CHECK(written.ok(), "{}", Message(written));
  config::TrainConfig config = ParseTrainConfig(kRun + yaml);
  config.mutable_data()->add_sources()->set_path(folder / "corpus");
  std::vector<Measured> ranks(static_cast<size_t>(world));
  RunRanks(world, [&](World& mine) {
    TrainerOptions options;
    options.world = &mine;
    auto trainer = OpenRun(config, folder / "run", 1, options);
    ASSERT_TRUE(trainer.ok()) << Message(trainer.status());
    const absl::Status status = (*trainer)->Run();
    ASSERT_TRUE(status.ok()) << Message(status);
    ranks[static_cast<size_t>(mine.rank())] = {(*trainer)->plan(),
                                               static_cast<double>((*trainer)->peak_bytes())};
  });
  const Layout layout = *LayoutOfRun(config, world);
  const DecoderSpec spec = *SpecOfRun(config);
  const auto alike = PlanRanks({.config = config,
                                .spec = spec,
                                .layout = layout,
                                .compute = ComputeTypeOf(config),
                                .ranks_on_host = world});
  ASSERT_TRUE(alike.ok()) << Message(alike.status());
  int counted = 0;
  for (const RanksAlike& group : *alike) {
    for (const int rank : group.ranks) {
      Measured got = ranks[static_cast<size_t>(rank)];
      const double ratio = got.peak / static_cast<double>(got.plan.tensors());
      EXPECT_GT(ratio, 0.85) << "rank " << rank << ": " << got.plan.ToString() << yaml;
      EXPECT_LT(ratio, 1.15) << "rank " << rank << ": " << got.plan.ToString() << yaml;
      got.plan.program = got.plan.data = 0;
      EXPECT_EQ(got.plan, group.plan) << "rank " << rank << ": " << got.plan.ToString();
      ++counted;
    }
  }
  EXPECT_EQ(counted, world);
}

std::string Parallel(const char* fields) {
  return std::string("dtype: bf16\nglobal_batch_size: 16\nmicro_batch_size: 4\nparallel: {") +
         fields + "}\n";
}

TEST(MemoryPlan, Ranks) {
  const std::string dense = Model(kLlama, "tie_word_embeddings: true");
  const std::string mixture = Model(kMoe, kTopTwo);
  ExpectPlannedOver(2, dense + Parallel("zero_stage: 0"));
  ExpectPlannedOver(4, dense + Parallel("tensor_parallel_size: 2, zero_stage: 1"));
  ExpectPlannedOver(2, mixture + Parallel("expert_parallel_size: 2"));
  ExpectPlannedOver(4, dense + Parallel("zero_stage: 3, zero_group_size: 2"));
  ExpectPlannedOver(2, dense + Parallel("pipeline_parallel_size: 2, pipeline_schedule: zb_v"));
  ExpectPlannedOver(4, mixture + Parallel("tensor_parallel_size: 2, sequence_parallel: false, "
                                          "expert_parallel_size: 2, "
                                          "expert_tensor_parallel_size: 1"));
}

TEST(FullMemoryPlan, Ranks) {
  const std::string dense = Model(kLlama, "tie_word_embeddings: false");
  const std::string mixture = Model(kMoe, kTopTwo);
  ExpectPlannedOver(2, dense + Parallel("tensor_parallel_size: 2"));
  ExpectPlannedOver(4, dense + Parallel("tensor_parallel_size: 4"));
  ExpectPlannedOver(2, mixture + Parallel("tensor_parallel_size: 2"));
  ExpectPlannedOver(4, mixture + Parallel("expert_parallel_size: 4"));
}

// More of it in activations, or next to nothing.
std::string Parallel(int batch, const char* fields) {
  return fmt::format("dtype: {}\nglobal_batch_size: {}\nmicro_batch_size: {}\nparallel: {{{}}}\n",
                     batch == 1 ? "f32" : "bf16", 8 * batch, batch, fields);
}

TEST(FullMemoryPlan, Shards) {
  const std::string dense = Model(kLlama, "tie_word_embeddings: false");
  const std::string tied = Model(kLlama, "tie_word_embeddings: true");
  for (const int batch : {1, 8}) {
    for (const char* fields :
         {"zero_stage: 2", "zero_stage: 3", "zero_stage: 3, zero_prefetch: 4",
          "zero_stage: 1, zero_group_size: 2", "zero_stage: 2, zero_group_size: 2",
          "zero_stage: 3, zero_group_size: 2", "zero_stage: 3, tensor_parallel_size: 2"}) {
      ExpectPlannedOver(4, dense + Parallel(batch, fields));
    }
  }
  ExpectPlannedOver(4, tied + Parallel(8, "zero_stage: 2"));
  ExpectPlannedOver(4, tied + Parallel(8, "zero_stage: 3"));
}

TEST(FullMemoryPlan, Pipelines) {
  const std::string dense = Model(kLlama, "tie_word_embeddings: false");
  const std::string tied = Model(kLlama, "tie_word_embeddings: true");
  for (const char* schedule : {"1f1b", "gpipe", "zb_h1", "zb_v", "interleaved_1f1b"}) {
    const std::string fields =
        fmt::format("pipeline_parallel_size: 2, pipeline_schedule: {}", schedule);
    ExpectPlannedOver(2, dense + Parallel(8, fields.c_str()));
    ExpectPlannedOver(4, tied + Parallel(1, (fields + ", zero_stage: 3").c_str()));
  }
  for (const char* fields :
       {"pipeline_parallel_size: 4", "pipeline_parallel_size: 4, pipeline_schedule: zb_h1",
        "pipeline_parallel_size: 2, zero_stage: 2", "pipeline_parallel_size: 2, zero_stage: 3",
        "pipeline_parallel_size: 2, zero_stage: 2, pipeline_schedule: zb_h1",
        "pipeline_parallel_size: 2, zero_stage: 3, pipeline_schedule: zb_v",
        "pipeline_parallel_size: 2, tensor_parallel_size: 2, pipeline_schedule: zb_v",
        "pipeline_parallel_size: 2, context_parallel_size: 2, context_parallel_method: ring, "
        "pipeline_schedule: interleaved_1f1b"}) {
    ExpectPlannedOver(4, dense + Parallel(8, fields));
  }
  // Fewer microbatches than the schedule would hold.
  ExpectPlannedOver(4, dense +
                           "dtype: f32\nglobal_batch_size: 16\nmicro_batch_size: 4\nparallel: "
                           "{pipeline_parallel_size: 2, pipeline_schedule: zb_v}\n");
}

TEST(FullMemoryPlan, Tokens) {
  const std::string dense = Model(kLlama, "tie_word_embeddings: false");
  const std::string latent = Model(kLatent, kTopTwoShared);
  for (const std::string& model : {dense, latent}) {
    for (const char* fields :
         {"tensor_parallel_size: 2, sequence_parallel: false",
          "context_parallel_size: 2, context_parallel_method: ring",
          "context_parallel_size: 2, tensor_parallel_size: 2, context_parallel_method: ring"}) {
      ExpectPlannedOver(4, model + Parallel(8, fields));
    }
  }
  ExpectPlannedOver(4, dense + Parallel(8, "tensor_parallel_size: 4, sequence_parallel: false"));
  ExpectPlannedOver(4,
                    dense + Parallel(8, "context_parallel_size: 4, context_parallel_method: ring"));
}

TEST(FullMemoryPlan, Experts) {
  const std::string mixture = Model(kMoe, kTopTwo);
  const std::string latent = Model(kLatent, kTopTwoShared);
  for (const char* fields :
       {"tensor_parallel_size: 2, expert_tensor_parallel_size: 1",
        "tensor_parallel_size: 2, expert_tensor_parallel_size: 1, expert_parallel_size: 4",
        "expert_tensor_parallel_size: 2", "expert_tensor_parallel_size: 4",
        "expert_tensor_parallel_size: 2, expert_parallel_size: 2",
        "tensor_parallel_size: 2, expert_tensor_parallel_size: 2, expert_parallel_size: 2",
        "tensor_parallel_size: 2, sequence_parallel: false",
        "expert_parallel_size: 2, zero_stage: 2", "expert_parallel_size: 2, zero_stage: 3",
        "expert_parallel_size: 2, zero_stage: 2, zero_group_size: 2",
        "expert_parallel_size: 2, zero_stage: 3, zero_group_size: 2",
        "expert_parallel_size: 2, context_parallel_size: 2, context_parallel_method: ring",
        "expert_parallel_size: 2, pipeline_parallel_size: 2, pipeline_split: [1, 2], "
        "pipeline_schedule: zb_h1"}) {
    ExpectPlannedOver(4, mixture + Parallel(8, fields));
  }
  for (const char* fields :
       {"tensor_parallel_size: 2, expert_parallel_size: 2, expert_tensor_parallel_size: 1",
        "expert_tensor_parallel_size: 2, zero_stage: 3",
        "expert_parallel_size: 2, zero_stage: 2, zero_group_size: 2"}) {
    ExpectPlannedOver(4, latent + Parallel(8, fields));
  }
}

TEST(MemoryPlan, SaysWhatWouldBeLeaner) {
  config::TrainConfig config =
      ParseTrainConfig(Model(kLlama, "tie_word_embeddings: true") + Parallel("zero_stage: 0"));
  const Layout layout = *LayoutOfRun(config, 4);
  const DecoderSpec spec = *SpecOfRun(config);
  const PlanArgs args = {.config = config, .spec = spec, .layout = layout, .compute = DType::kBF16};
  const int64_t now = MostBytes(*PlanRanks(args));
  const std::vector<LeanerRun> runs = LeanerRuns(args);
  const auto has = [&](const char* change) {
    return std::ranges::find(runs, change, &LeanerRun::change) != runs.end();
  };
  EXPECT_TRUE(has("parallel.zero_stage=1"));
  EXPECT_TRUE(has("parallel.tensor_parallel_size=2"));
  EXPECT_TRUE(has("micro_batch_size=2"));
  EXPECT_TRUE(has("checkpoint.async=false"));
  EXPECT_FALSE(has("parallel.expert_parallel_size=2"));  // there are no experts
  EXPECT_TRUE(std::ranges::is_sorted(runs, {}, &LeanerRun::bytes));
  for (const LeanerRun& run : runs) EXPECT_LT(run.bytes, now) << run.change;
}

TEST(FullMemoryPlan, Dense) {
  for (const char* tied : {"tie_word_embeddings: true", "tie_word_embeddings: false"}) {
    for (const char* dtype : {"dtype: bf16\n", "dtype: f32\n"}) {
      for (const char* batch : {kWide, kNarrow}) ExpectPlanned(Model(kLlama, tied) + dtype + batch);
    }
  }
}

TEST(FullMemoryPlan, Mixture) {
  for (const char* experts :
       {kTopTwo, "num_experts: 8, num_experts_per_tok: 6, moe_intermediate_size: 256",
        "num_experts: 32, num_experts_per_tok: 4, moe_intermediate_size: 64"}) {
    for (const char* dtype : {"dtype: bf16\n", "dtype: f32\n"}) {
      for (const char* batch : {kWide, kNarrow}) {
        ExpectPlanned(Model(kMoe, experts) + dtype + batch);
      }
    }
  }
}

}  // namespace
}  // namespace cadre
