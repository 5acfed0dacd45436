// Every layout trains what one process trains. In f64 the reference ops run end to end and leave no
// room but for the order of sums: gradients of step 1 within 1e-10 (relative L2, per parameter), 20
// losses within 1e-9. In f32 the production kernels run: gradients and losses within 1e-5, of a
// mixture until the step in which a token's experts first differ, which must have been a close
// choice: a mixture amplifies rounding where two experts are as good as equal, and only there.
#include <filesystem>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/layout_run.h"
#include "tests/training_run.h"

namespace cadre {
namespace {

using testing_run::ExpertChoice;
using testing_run::Fault;
using testing_run::Gap;
using testing_run::LayoutRun;
using testing_run::ParseTrainConfig;
using testing_run::RoutingLog;
using testing_run::RoutingSplit;
using testing_run::TempFolder;

constexpr int kVocabulary = 128;
constexpr size_t kSteps = 20;
constexpr double kCloseChoice = 1e-5;  // between scores

const char kRun[] = R"(
data: {seq_len: 32, validation_fraction: 0.1}
lr_schedule: {warmup_steps: 1}
eval: {interval: 10, batches: 3}
log: {tensorboard: false}
checkpoint: {interval: 0}
global_batch_size: 8
micro_batch_size: 1
)";

// Models by name, as small as their features allow.
const std::map<std::string, std::string> kModels = {
    {"dense",
     "model: {model_type: llama, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
     "num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 128}\n"},
    {"tied",
     "model: {model_type: llama, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
     "num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 128, tie_word_embeddings: true}\n"
     "z_loss_coef: 0.001\n"
     "dropout: 0.1\n"},
    {"rungs",  // ladder layers on both sides of a standard one
     "model: {model_type: llama, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 3, "
     "num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 128, residual: ladder, "
     "ladder_layers: [0, 2]}\n"
     "dropout: 0.1\n"},
    {"moe",
     "model: {model_type: qwen3_moe, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
     "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, num_experts: 8, "
     "num_experts_per_tok: 2, moe_intermediate_size: 32, norm_topk_prob: true, vocab_size: 128}\n"
     "moe: {balance_loss_coef: 0.01, router_z_loss_coef: 0.001}\n"},
    {"moe-capped",
     "model: {model_type: qwen3_moe, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
     "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, num_experts: 8, "
     "num_experts_per_tok: 2, moe_intermediate_size: 32, norm_topk_prob: true, vocab_size: 128}\n"
     "moe: {capacity_factor: 0.75}\n"},
    {"norms",
     "model: {model_type: olmoe, hidden_size: 64, intermediate_size: 32, num_hidden_layers: 2, "
     "num_attention_heads: 4, num_key_value_heads: 2, num_experts: 4, num_experts_per_tok: 2, "
     "clip_qkv: 4.0, vocab_size: 130}\n"},
    {"oss",
     "model: {model_type: gpt_oss, hidden_size: 64, intermediate_size: 32, num_hidden_layers: 2, "
     "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, num_local_experts: 4, "
     "num_experts_per_tok: 2, sliding_window: 16, vocab_size: 128}\n"
     "moe: {balance_loss_coef: 0.01, balance_scope: sequence}\n"},
    {"bias",
     "model: {model_type: deepseek_v3, hidden_size: 64, intermediate_size: 96, num_hidden_layers: "
     "2, "
     "num_attention_heads: 4, num_key_value_heads: 4, q_lora_rank: 32, kv_lora_rank: 16, "
     "qk_nope_head_dim: 16, qk_rope_head_dim: 8, v_head_dim: 16, n_routed_experts: 8, "
     "n_shared_experts: 1, num_experts_per_tok: 2, n_group: 2, topk_group: 1, "
     "first_k_dense_replace: 1, moe_intermediate_size: 32, routed_scaling_factor: 1.5, "
     "norm_topk_prob: true, vocab_size: 128}\n"
     "moe: {router_bias_update_rate: 0.01}\n"},
};

// A name that ends so is that of a model above with ladder layers alone.
constexpr std::string_view kLadder = "/ladder";

struct Case {
  const char* model;
  int world;
  const char* parallel;  // fields of ParallelConfig
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << " on " << c.world << " ranks {" << c.parallel << "}";
}

// Reads the same corpus in every run.
class Runs {
 public:
  Runs() {
    const absl::Status written = testing_run::WriteCorpus(folder_ / "corpus", kVocabulary, 200, 5);
    CADRE_CHECK(written.ok(), "{}", Message(written));
  }

  LayoutRun Train(const std::string& model, const std::string& dtype, int world,
                  const std::string& parallel) {
    return testing_run::TrainUnder(Config(model, dtype, parallel), world, NewFolder());
  }

  // A few steps with a fault in them.
  LayoutRun TrainWrongly(const Case& c, const Fault& fault, int steps = 2) {
    config::TrainConfig config = Config(c.model, "f64", c.parallel);
    config.set_train_steps(steps);
    return testing_run::TrainUnder(config, c.world, NewFolder(), fault);
  }

  // How the others' runs end where rank 1 opens its run and leaves.
  std::vector<absl::Status> LoseRankOne(const Case& c) {
    return testing_run::LoseRankOne(Config(c.model, "f32", c.parallel), c.world, NewFolder());
  }

  // The losses of the last ten of twenty steps, which go on under `second` from what `first` saved.
  std::vector<double> Continue(const std::string& model, const std::string& dtype,
                               const Case& first, const Case& second) {
    const std::string output = NewFolder();
    config::TrainConfig config = Config(model, dtype, first.parallel);
    config.mutable_checkpoint()->set_interval(10);
    testing_run::TrainUnder(config, first.world, output);
    CADRE_CHECK(std::filesystem::remove_all(output + "/checkpoints/step-000020") > 0);
    config = Config(model, dtype, second.parallel);
    return testing_run::TrainUnder(config, second.world, output).losses;
  }

  // What one process does, once for each model and dtype.
  const LayoutRun& Reference(const std::string& model, const std::string& dtype) {
    auto& run = references_[model + dtype];
    if (run.losses.empty()) run = Train(model, dtype, 1, "");
    return run;
  }

 private:
  config::TrainConfig Config(const std::string& model, const std::string& dtype,
                             const std::string& parallel) const {
    const bool ladder = model.ends_with(kLadder);
    const std::string base = model.substr(0, model.size() - (ladder ? kLadder.size() : 0));
    config::TrainConfig config = ParseTrainConfig(kRun + kModels.at(base) + "dtype: " + dtype +
                                                  "\ntrain_steps: " + std::to_string(kSteps) +
                                                  "\n" + "parallel: {" + parallel + "}\n");
    if (ladder) config.mutable_model()->set_residual("ladder");
    config.mutable_data()->add_sources()->set_path(folder_ / "corpus");
    return config;
  }
  std::string NewFolder() { return folder_ / ("run" + std::to_string(runs_++)); }

  TempFolder folder_;
  int runs_ = 0;
  std::map<std::string, LayoutRun> references_;
};

class Layouts : public testing::TestWithParam<Case> {
 protected:
  static void SetUpTestSuite() { runs_ = new Runs; }
  static void TearDownTestSuite() { delete runs_; }
  static inline Runs* runs_ = nullptr;
};

TEST_P(Layouts, ReferenceOpsAgreeWithOneProcess) {
  const Case& c = GetParam();
  const LayoutRun& expected = runs_->Reference(c.model, "f64");
  const LayoutRun got = runs_->Train(c.model, "f64", c.world, c.parallel);
  const Gap gap = LargestGap(expected, got);
  EXPECT_LE(gap.relative, 1e-10) << gap.parameter;
  EXPECT_LE(LargestLossGap(expected, got), 1e-9);
}

TEST_P(Layouts, ProductionKernelsAgreeWithOneProcess) {
  const Case& c = GetParam();
  const LayoutRun& expected = runs_->Reference(c.model, "f32");
  const LayoutRun got = runs_->Train(c.model, "f32", c.world, c.parallel);
  const RoutingSplit split = FirstSplit(expected.spec, expected.routing, got.routing);
  EXPECT_LT(split.gap, kCloseChoice)
      << "step " << split.step << ", layer " << split.layer << ", token " << split.token;
  const size_t same = split.step < 0 ? kSteps : static_cast<size_t>(split.step);
  EXPECT_LE(LargestLossGap(expected, got, same), 1e-5);
  if (same == 0) return;
  const Gap gap = LargestGap(expected, got);
  EXPECT_LE(gap.relative, 1e-5) << gap.parameter;
}

INSTANTIATE_TEST_SUITE_P(
    DataParallel, Layouts,
    testing::Values(Case{"dense", 2, "zero_stage: 0"}, Case{"tied", 4, "zero_stage: 1"},
                    Case{"moe", 2, "zero_stage: 1"}, Case{"tied", 2, "zero_stage: 2"},
                    Case{"dense", 2, "zero_stage: 3"}, Case{"bias", 4, "zero_stage: 0"},
                    Case{"dense", 4, "zero_stage: 3, zero_group_size: 2"}));

// A rank that ends early leaves the others with an error, and nothing else.
TEST(LayoutFailures, ALostRankIsAStatus) {
  Runs runs;
  for (const char* layout :
       {"tensor_parallel_size: 2", "expert_parallel_size: 2", "context_parallel_size: 2"}) {
    const std::vector<absl::Status> ended = runs.LoseRankOne({"moe", 2, layout});
    ASSERT_EQ(ended.size(), 1u);
    EXPECT_EQ(ended[0].code(), absl::StatusCode::kUnavailable) << Message(ended[0]);
    EXPECT_THAT(Message(ended[0]), testing::HasSubstr("rank 1 is lost in"));
  }
}

// A test of the tests: each class of layout with a sum left out or scaled is noticed by the bound
// that they use.
TEST(LayoutFaults, AreNoticed) {
  constexpr Fault::Kind kDropped = Fault::Kind::kDroppedSum, kAverage = Fault::Kind::kAverage;
  constexpr Fault::Kind kShifted = Fault::Kind::kShiftedRows;
  const Case dp{"dense", 2, "zero_stage: 0"}, zero{"dense", 2, "zero_stage: 1"};
  const Case zero2{"dense", 2, "zero_stage: 2"}, zero3{"dense", 2, "zero_stage: 3"};
  const Case hybrid{"dense", 4, "zero_stage: 2, zero_group_size: 2"};
  const Case tp{"moe", 2, "tensor_parallel_size: 2, zero_stage: 0"};
  const Case norms{"norms", 2, "tensor_parallel_size: 2"};
  const Case ep{"moe", 4, "expert_parallel_size: 2, zero_stage: 1"};
  const Case cp{"dense", 2, "context_parallel_size: 2"};
  const Case latents{"bias", 2, "context_parallel_size: 2"};
  const Case copies{"moe", 2, "tensor_parallel_size: 2, sequence_parallel: false"};
  const Case split{"moe", 2,
                   "tensor_parallel_size: 2, expert_tensor_parallel_size: 1, "
                   "sequence_parallel: false"};
  const Case ladder{"dense/ladder", 2, "tensor_parallel_size: 2"};
  const Case etp{"oss", 4, "expert_parallel_size: 2, tensor_parallel_size: 2"};
  const Case pp{"tied", 2, "pipeline_parallel_size: 2"};
  const std::vector<std::pair<Case, Fault>> faults = {
      {dp, {kDropped, "dp_cp", "gradients"}},
      {dp, {kAverage, "dp_cp", "gradients"}},
      {zero, {kDropped, "dp_cp", "gradients"}},
      {zero2, {kDropped, "dp_cp", "gradients"}},
      {zero3, {kShifted, "dp_cp", "weights"}},
      {hybrid, {kDropped, "dp_cp_copy", "gradients"}},
      {tp, {kDropped, "stage", "gradients"}},  // of norms and routers, which are whole on each rank
      {tp, {kDropped, "tp", "attention"}},
      {tp, {kDropped, "etp", "experts"}},
      {tp, {kDropped, "tp_cp", "balance"}},
      {norms, {kDropped, "tp", "query and key norm"}},
      {norms, {kAverage, "tp", "embedding"}},
      {ep, {kDropped, "edp", "expert gradients"}},
      {ep, {kAverage, "edp", "expert gradients"}},
      {cp, {kDropped, "cp", "keys and values"}},
      {cp, {kAverage, "cp", "keys and values"}},
      {cp, {kDropped, "dp_cp", "gradients"}},
      {latents, {kDropped, "cp", "keys and values"}},
      {copies, {kDropped, "tp", "experts"}},
      {copies, {kDropped, "stage", "gradients"}},  // of norms over a rank's own heads
      {split, {kDropped, "edp", "expert gradients"}},
      {ladder, {kDropped, "tp", "attention"}},
      {ladder, {kDropped, "tp", "mlp"}},
      {ep, {kShifted, "ep", "experts"}},
      {etp, {kDropped, "etp", "experts"}},
      {etp, {kDropped, "etp_edp", "expert gradients"}},  // of the experts' biases
      {pp, {kDropped, "embedding", "gradients"}},
  };
  Runs runs;
  // What stands between changes nothing by itself.
  const LayoutRun right = runs.TrainWrongly(tp, {kDropped, "tp", "no such label"});
  EXPECT_LE(LargestGap(runs.Reference(tp.model, "f64"), right).relative, 1e-10);
  for (const auto& [c, fault] : faults) {
    const LayoutRun got = runs.TrainWrongly(c, fault);
    EXPECT_GT(LargestGap(runs.Reference(c.model, "f64"), got).relative, 1e-10)
        << c.model << " {" << c.parallel << "}: " << fault.group << " " << fault.label;
  }
}

TEST(LayoutFaults, WrongRoutingIsNoCloseChoice) {
  Runs runs;
  for (const char* model : {"moe", "bias", "oss"}) {
    const LayoutRun& right = runs.Reference(model, "f64");
    RoutingLog wrong = right.routing;
    auto& [place, choices] = *std::next(wrong.begin(), 7);
    ExpertChoice& choice = choices[11];
    // The last of those that were not chosen.
    int32_t other = static_cast<int32_t>(choice.scores.size()) - 1;
    while (std::ranges::count(choice.experts, other) > 0) --other;
    choice.experts.back() = other;
    std::ranges::sort(choice.experts);
    const RoutingSplit split = FirstSplit(right.spec, right.routing, wrong);
    EXPECT_EQ(std::pair(split.step, split.layer), place) << model;
    EXPECT_EQ(split.token, 11) << model;
    EXPECT_GT(split.gap, kCloseChoice) << model;
    EXPECT_EQ(FirstSplit(right.spec, right.routing, right.routing).step, -1);
  }
  // Routers that drift apart: their gradients are not summed.
  const Case tp{"moe", 2, "tensor_parallel_size: 2, zero_stage: 0"};
  const LayoutRun drifted =
      runs.TrainWrongly(tp, {Fault::Kind::kDroppedSum, "stage", "gradients"}, kSteps);
  const LayoutRun& right = runs.Reference(tp.model, "f64");
  EXPECT_GT(FirstSplit(right.spec, right.routing, drifted.routing).gap, kCloseChoice);
}

TEST(LayoutCheckpoints, ARunGoesOnUnderAnotherLayout) {
  Runs runs;
  const std::vector<std::pair<Case, Case>> pairs = {
      {{"dense", 4, "zero_stage: 3"}, {"dense", 1, ""}},
      {{"dense", 2, "zero_stage: 3, zero_prefetch: 0"}, {"dense", 4, "zero_stage: 1"}},
      {{"dense", 1, ""}, {"dense", 2, "zero_stage: 1"}},
      {{"dense", 4, "zero_stage: 1, zero_group_size: 2"}, {"dense", 2, "zero_stage: 3"}},
      {{"bias", 2, "zero_stage: 0"}, {"bias", 4, "zero_stage: 1"}},
      {{"tied", 4, "tensor_parallel_size: 2"}, {"tied", 1, ""}},
      {{"norms", 2, "zero_stage: 1"}, {"norms", 4, "tensor_parallel_size: 4"}},
      {{"oss", 2, "tensor_parallel_size: 2"},
       {"oss", 4,
        "expert_parallel_size: 4, tensor_parallel_size: 2, expert_tensor_parallel_size: 1"}},
      {{"moe", 4, "expert_parallel_size: 2, zero_stage: 1"},
       {"moe", 2, "tensor_parallel_size: 2, zero_stage: 0"}},
      {{"tied", 2, "context_parallel_size: 2"}, {"tied", 2, "zero_stage: 0"}},
      {{"tied", 2, "pipeline_parallel_size: 2"}, {"tied", 2, "zero_stage: 1"}},
      {{"moe", 2, "expert_parallel_size: 2"},
       {"moe", 4, "pipeline_parallel_size: 2, pipeline_schedule: zb_h1, expert_parallel_size: 2"}}};
  for (const auto& [first, second] : pairs) {
    const LayoutRun& expected = runs.Reference(first.model, "f64");
    const std::vector<double> losses = runs.Continue(first.model, "f64", first, second);
    ASSERT_EQ(losses.size(), 10u);
    for (size_t i = 0; i < 10; ++i) {
      EXPECT_NEAR(losses[i] / expected.losses[10 + i], 1.0, 1e-9) << first.model << " " << i;
    }
  }
}

// What no element is rounded twice for: the masters of bf16 weights come back whole.
TEST(LayoutCheckpoints, ShardsOfMastersComeBackBitForBit) {
  Runs runs;
  const Case sharded{"dense", 2, "zero_stage: 3"};
  const LayoutRun undisturbed = runs.Train("dense", "bf16", 2, sharded.parallel);
  const std::vector<double> losses = runs.Continue("dense", "bf16", sharded, sharded);
  ASSERT_EQ(losses.size(), 10u);
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(losses[i], undisturbed.losses[10 + i]) << i;
}

// What a capacity drops is a layout's own, but always the same.
TEST(LayoutCapacity, DropsTheSameEveryTime) {
  Runs runs;
  const Case ep{"moe-capped", 2, "expert_parallel_size: 2"};
  const LayoutRun one = runs.Train(ep.model, "f32", ep.world, ep.parallel);
  const LayoutRun two = runs.Train(ep.model, "f32", ep.world, ep.parallel);
  EXPECT_EQ(one.losses, two.losses);
  EXPECT_EQ(one.gradients, two.gradients);
  EXPECT_GT(LargestGap(runs.Reference("moe", "f32"), one).relative, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(
    TensorParallel, Layouts,
    testing::Values(Case{"dense", 2, "tensor_parallel_size: 2"},
                    Case{"dense", 4, "tensor_parallel_size: 4, zero_stage: 0"},
                    Case{"tied", 4, "tensor_parallel_size: 2, zero_stage: 3"},
                    Case{"norms", 4, "tensor_parallel_size: 4, zero_stage: 1"},
                    Case{"moe", 2, "tensor_parallel_size: 2, zero_stage: 0"},
                    Case{"moe", 4, "tensor_parallel_size: 2, expert_tensor_parallel_size: 1"},
                    Case{"oss", 2, "tensor_parallel_size: 2, zero_stage: 3"},
                    Case{"bias", 4, "tensor_parallel_size: 4, zero_stage: 1"}));

INSTANTIATE_TEST_SUITE_P(
    AllTokens, Layouts,
    testing::Values(Case{"tied", 4, "tensor_parallel_size: 2, sequence_parallel: false"},
                    Case{"moe", 2, "tensor_parallel_size: 2, sequence_parallel: false"},
                    Case{"bias", 4,
                         "tensor_parallel_size: 2, expert_parallel_size: 2, "
                         "expert_tensor_parallel_size: 1, sequence_parallel: false"}));

INSTANTIATE_TEST_SUITE_P(Ladder, Layouts,
                         testing::Values(Case{"dense/ladder", 2, "tensor_parallel_size: 2"},
                                         Case{"rungs", 4, "tensor_parallel_size: 2"},
                                         Case{"dense/ladder", 4,
                                              "pipeline_parallel_size: 2, tensor_parallel_size: 2, "
                                              "pipeline_schedule: zb_h1"}));

INSTANTIATE_TEST_SUITE_P(ExpertParallel, Layouts,
                         testing::Values(Case{"moe", 2, "expert_parallel_size: 2, zero_stage: 0"},
                                         Case{"moe", 4, "expert_parallel_size: 2, zero_stage: 2"},
                                         Case{"bias", 4,
                                              "expert_parallel_size: 4, tensor_parallel_size: 2, "
                                              "expert_tensor_parallel_size: 1"},
                                         Case{"moe", 4,
                                              "expert_parallel_size: 2, tensor_parallel_size: 2, "
                                              "expert_tensor_parallel_size: 2"},
                                         Case{"oss", 4,
                                              "expert_parallel_size: 2, "
                                              "expert_tensor_parallel_size: 2, zero_stage: 0"},
                                         Case{"oss", 8,
                                              "expert_parallel_size: 4, tensor_parallel_size: 2, "
                                              "expert_tensor_parallel_size: 1, zero_stage: 1"}));

INSTANTIATE_TEST_SUITE_P(ContextParallel, Layouts,
                         testing::Values(Case{"dense", 2, "context_parallel_size: 2"},
                                         Case{"bias", 4,
                                              "context_parallel_size: 2, tensor_parallel_size: 2, "
                                              "zero_stage: 0"},
                                         Case{"oss", 4,
                                              "context_parallel_size: 2, expert_parallel_size: 4, "
                                              "zero_stage: 1"},
                                         Case{"dense", 2,
                                              "context_parallel_size: 2, "
                                              "context_parallel_method: ring"}));

INSTANTIATE_TEST_SUITE_P(
    FullContext, Layouts,
    testing::Values(
        Case{"dense", 8, "context_parallel_size: 8, zero_stage: 1"},
        Case{"dense", 8, "context_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"tied", 4, "context_parallel_size: 2, zero_stage: 1"},
        Case{"tied", 8, "context_parallel_size: 4, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"moe", 2, "context_parallel_size: 2, expert_parallel_size: 2"},
        Case{"moe", 8, "context_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"moe", 8,
             "context_parallel_size: 2, tensor_parallel_size: 2, expert_parallel_size: 4, "
             "expert_tensor_parallel_size: 1"},
        Case{"norms", 2, "context_parallel_size: 2, zero_stage: 0"},
        Case{"norms", 4, "context_parallel_size: 2, tensor_parallel_size: 2"},
        Case{"oss", 4, "context_parallel_size: 4"},
        Case{"oss", 4, "context_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 0"},
        Case{"bias", 4, "context_parallel_size: 4, zero_stage: 1"},
        Case{"bias", 4,
             "context_parallel_size: 2, tensor_parallel_size: 2, sequence_parallel: false"},
        Case{"moe", 8,
             "context_parallel_size: 2, tensor_parallel_size: 2, sequence_parallel: false, "
             "expert_parallel_size: 4, expert_tensor_parallel_size: 2"},
        Case{"rungs", 4, "context_parallel_size: 2, zero_stage: 1"},
        Case{"norms", 4, "context_parallel_size: 4, context_parallel_method: ring"},
        Case{"bias", 4,
             "context_parallel_size: 2, tensor_parallel_size: 2, context_parallel_method: ring"},
        Case{"dense", 8,
             "context_parallel_size: 2, pipeline_parallel_size: 2, tensor_parallel_size: 2"},
        Case{"tied", 4,
             "context_parallel_size: 2, pipeline_parallel_size: 2, pipeline_schedule: gpipe"},
        Case{"bias", 8, "context_parallel_size: 4, expert_parallel_size: 8, zero_stage: 1"}));

INSTANTIATE_TEST_SUITE_P(
    Pipeline, Layouts,
    testing::Values(
        Case{"dense", 2, "pipeline_parallel_size: 2"},
        Case{"rungs", 2, "pipeline_parallel_size: 2, pipeline_schedule: zb_h1"},
        Case{"tied", 4,
             "pipeline_parallel_size: 2, pipeline_schedule: zb_h1, tensor_parallel_size: 2"},
        Case{"tied", 2,
             "pipeline_parallel_size: 2, pipeline_schedule: zb_v, pipeline_split: [0, 1, 1, 0]"},
        Case{"moe", 4,
             "pipeline_parallel_size: 2, pipeline_schedule: gpipe, expert_parallel_size: 2"},
        Case{"bias", 4,
             "pipeline_parallel_size: 2, pipeline_schedule: interleaved_1f1b, "
             "pipeline_split: [0, 1, 1, 0], zero_stage: 1"}));

INSTANTIATE_TEST_SUITE_P(
    Full, Layouts,
    testing::Values(
        Case{"dense", 8, "zero_stage: 1"}, Case{"dense", 8, "zero_stage: 0"},
        Case{"dense", 8,
             "pipeline_parallel_size: 2, tensor_parallel_size: 2, pipeline_schedule: zb_h1"},
        Case{"dense", 2, "pipeline_parallel_size: 2, pipeline_schedule: gpipe"},
        Case{"tied", 4, "pipeline_parallel_size: 4, pipeline_split: [0, 1, 1, 0]"},
        Case{"tied", 8, "pipeline_parallel_size: 2, zero_stage: 1"},
        Case{"tied", 8,
             "pipeline_parallel_size: 2, tensor_parallel_size: 2, sequence_parallel: false, "
             "context_parallel_size: 2"},
        Case{"dense", 4, "pipeline_parallel_size: 2, context_parallel_size: 2"},
        Case{"norms", 4,
             "pipeline_parallel_size: 2, expert_parallel_size: 2, "
             "pipeline_schedule: zb_v, pipeline_split: [0, 1, 1, 0]"},
        Case{"moe", 8,
             "pipeline_parallel_size: 2, tensor_parallel_size: 2, "
             "expert_tensor_parallel_size: 1, expert_parallel_size: 4"},
        Case{"oss", 4, "pipeline_parallel_size: 2, tensor_parallel_size: 2"},
        Case{"bias", 2, "pipeline_parallel_size: 2, pipeline_schedule: zb_h1"},
        Case{"bias", 8, "pipeline_parallel_size: 2, expert_parallel_size: 2, zero_stage: 1"},
        Case{"dense", 8, "zero_stage: 3, zero_prefetch: 3"},
        Case{"dense", 4, "pipeline_parallel_size: 2, zero_stage: 3"},
        Case{"tied", 4, "pipeline_parallel_size: 2, zero_stage: 2"},
        Case{"tied", 8, "pipeline_parallel_size: 2, zero_stage: 3, zero_group_size: 2"},
        Case{"dense", 8, "tensor_parallel_size: 2, zero_stage: 2"},
        Case{"tied", 4, "zero_stage: 3, zero_prefetch: 0"},
        Case{"tied", 4, "context_parallel_size: 2, zero_stage: 3"},
        Case{"norms", 4, "tensor_parallel_size: 2, zero_stage: 3"},
        Case{"moe", 8, "expert_parallel_size: 4, zero_stage: 3"},
        Case{"oss", 4, "tensor_parallel_size: 2, zero_stage: 3"}, Case{"bias", 4, "zero_stage: 3"},
        Case{"tied", 8, "tensor_parallel_size: 2, zero_stage: 1, zero_group_size: 2"},
        Case{"moe", 8, "expert_parallel_size: 2, zero_stage: 3, zero_group_size: 4"},
        Case{"oss", 8, "expert_parallel_size: 4, zero_stage: 2, zero_group_size: 2"},
        Case{"bias", 8,
             "expert_parallel_size: 4, tensor_parallel_size: 2, "
             "expert_tensor_parallel_size: 1, zero_stage: 2"},
        Case{"dense", 8, "tensor_parallel_size: 2, zero_stage: 1"},
        Case{"dense", 8, "tensor_parallel_size: 4, zero_stage: 0"},
        Case{"dense", 4, "tensor_parallel_size: 4, sequence_parallel: false, zero_stage: 0"},
        Case{"norms", 4, "tensor_parallel_size: 4, sequence_parallel: false"},
        Case{"oss", 2, "tensor_parallel_size: 2, sequence_parallel: false"},
        Case{"oss", 4, "tensor_parallel_size: 4, sequence_parallel: false"},
        Case{"oss/ladder", 4, "tensor_parallel_size: 4"},
        Case{"bias", 8, "tensor_parallel_size: 4, sequence_parallel: false, zero_stage: 0"},
        Case{"moe", 4,
             "tensor_parallel_size: 2, expert_tensor_parallel_size: 1, sequence_parallel: false"},
        Case{"moe", 4,
             "tensor_parallel_size: 2, expert_parallel_size: 2, expert_tensor_parallel_size: 2, "
             "sequence_parallel: false"},
        Case{"dense/ladder", 4, "tensor_parallel_size: 4, zero_stage: 0"},
        Case{"dense/ladder", 4, "tensor_parallel_size: 2, sequence_parallel: true"},
        Case{"rungs", 2, "zero_stage: 1"}, Case{"moe/ladder", 2, "tensor_parallel_size: 2"},
        Case{"moe/ladder", 4, "expert_parallel_size: 2"},
        Case{"moe/ladder", 4,
             "tensor_parallel_size: 2, expert_parallel_size: 4, expert_tensor_parallel_size: 1"},
        Case{"bias/ladder", 8, "tensor_parallel_size: 4"},
        Case{"rungs", 2, "pipeline_parallel_size: 2"},
        Case{"rungs", 8, "pipeline_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"moe/ladder", 4,
             "pipeline_parallel_size: 2, expert_parallel_size: 2, pipeline_schedule: gpipe"},
        Case{"moe", 4,
             "pipeline_parallel_size: 2, tensor_parallel_size: 2, sequence_parallel: false"},
        Case{"moe/ladder", 4, "tensor_parallel_size: 2, context_parallel_size: 2"},
        Case{"tied", 2, "tensor_parallel_size: 2"},
        Case{"tied", 8, "tensor_parallel_size: 4, zero_stage: 1"},
        Case{"norms", 2, "tensor_parallel_size: 2, zero_stage: 0"},
        Case{"norms", 8, "tensor_parallel_size: 2, zero_stage: 1"},
        Case{"norms", 4, "expert_parallel_size: 4"},
        Case{"moe", 8, "expert_parallel_size: 8, zero_stage: 0"},
        Case{"moe", 8, "expert_parallel_size: 4, zero_stage: 1"},
        Case{"moe", 8,
             "expert_parallel_size: 4, tensor_parallel_size: 2, expert_tensor_parallel_size: 1"},
        Case{"moe", 4,
             "expert_parallel_size: 2, tensor_parallel_size: 2, expert_tensor_parallel_size: 1"},
        Case{"moe", 4, "tensor_parallel_size: 4"},
        Case{"moe", 4, "tensor_parallel_size: 4, expert_tensor_parallel_size: 1"},
        Case{"moe", 8, "tensor_parallel_size: 4, zero_stage: 1"},
        Case{"moe", 8,
             "expert_parallel_size: 2, tensor_parallel_size: 4, expert_tensor_parallel_size: 2"},
        Case{"moe", 4, "tensor_parallel_size: 4, expert_tensor_parallel_size: 2"},
        Case{"moe", 4, "expert_tensor_parallel_size: 4, zero_stage: 0"},
        Case{"moe", 8,
             "expert_parallel_size: 2, tensor_parallel_size: 2, expert_tensor_parallel_size: 4"},
        Case{"norms", 8, "expert_parallel_size: 4, expert_tensor_parallel_size: 2"},
        Case{"norms", 8, "expert_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"oss", 8, "expert_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"oss", 4, "tensor_parallel_size: 2, expert_tensor_parallel_size: 4"},
        Case{"bias", 8, "expert_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 0"},
        Case{"oss", 2, "expert_parallel_size: 2"}, Case{"oss", 4, "tensor_parallel_size: 4"},
        Case{"oss", 8, "tensor_parallel_size: 4, zero_stage: 0"},
        Case{"oss", 4, "tensor_parallel_size: 2, expert_tensor_parallel_size: 1"},
        Case{"bias", 2, "tensor_parallel_size: 2"}, Case{"bias", 2, "expert_parallel_size: 2"},
        Case{"bias", 8, "expert_parallel_size: 8, zero_stage: 1"},
        Case{"bias", 8,
             "expert_parallel_size: 2, tensor_parallel_size: 4, expert_tensor_parallel_size: 1"}));

}  // namespace
}  // namespace cadre
