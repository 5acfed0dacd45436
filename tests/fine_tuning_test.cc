// Fine-tuning on chats from a trained model, what it leaves alone, steps without a loss token, and
// the router bias that balances without a loss.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/host_allocator.h"
#include "core/ops/gemm.h"
#include "core/safetensors.h"
#include "model/initialize.h"
#include "model/model.h"
#include "tests/training_run.h"
#include "training/gradient_norm.h"
#include "training/optimizer.h"
#include "training/train_step.h"

namespace cadre {
namespace {

using testing_run::OpenRun;
using testing_run::ParseTrainConfig;
using testing_run::TempFolder;

const char kTokenizer[] = "tests/data/tokenizer";

const char kCommon[] =
    "lr_schedule: {warmup_steps: 1}\nglobal_batch_size: 4\nmicro_batch_size: 2\n"
    "log: {tensorboard: false}\neval: {interval: 0}\n";

const char kDeepSeek[] =
    "model: {model_type: deepseek_v3, hidden_size: 32, intermediate_size: 48, "
    "num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2, vocab_size: 256, "
    "q_lora_rank: 16, kv_lora_rank: 16, qk_nope_head_dim: 16, qk_rope_head_dim: 16, "
    "v_head_dim: 16, n_routed_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 16, "
    "n_shared_experts: 1, first_k_dense_replace: 1, n_group: 2, topk_group: 1, "
    "norm_topk_prob: true}\n";

std::vector<nlohmann::json> Metrics(const std::string& output) {
  std::ifstream file(output + "/metrics.jsonl");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

// Bytes of each tensor of a folder's model.safetensors.
std::map<std::string, std::string> Tensors(const std::string& folder) {
  auto file = SafetensorsFile::Open(folder + "/model.safetensors");
  CADRE_CHECK(file.ok(), "{}", Message(file.status()));
  std::map<std::string, std::string> tensors;
  for (const SafetensorsEntry& entry : file->tensors()) {
    std::span<const std::byte> bytes = file->Bytes(entry);
    tensors[entry.name].assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return tensors;
}

void TrainTo(const config::TrainConfig& config, const std::string& output) {
  auto trainer = OpenRun(config, output, 1);
  ASSERT_TRUE(trainer.ok()) << Message(trainer.status());
  const absl::Status ran = (*trainer)->Run();
  ASSERT_TRUE(ran.ok()) << Message(ran);
}

class FineTuning : public testing::Test {
 protected:
  // A model that knows nothing yet.
  void SetUp() override {
    std::ifstream tokenizer(std::string(kTokenizer) + "/tokenizer.json");
    const auto json = nlohmann::json::parse(tokenizer);
    const size_t entries = json["model"]["vocab"].size() + json["added_tokens"].size();
    ASSERT_TRUE(
        testing_run::WriteCorpus(folder_ / "corpus", static_cast<int>(entries), 60, 1).ok());
    config::TrainConfig config = ParseTrainConfig(
        std::string(kCommon) +
        "model: {model_type: llama, hidden_size: 64, intermediate_size: 128, "
        "num_hidden_layers: 2, num_attention_heads: 2, vocab_size: " +
        std::to_string((entries + 63) / 64 * 64) + "}\ndata: {seq_len: 96}\ntrain_steps: 2\n");
    config.mutable_data()->add_sources()->set_path(folder_ / "corpus");
    config.set_tokenizer(kTokenizer);
    TrainTo(config, folder_ / "base");
    base_ = folder_ / "base/checkpoints/latest";
    WriteChats(true);
  }

  // Noise is asked and the answers are all alike, or the other way round.
  void WriteChats(bool noise_is_asked) {
    std::ofstream chats(folder_ / "chats.jsonl");
    for (int i = 0; i < 60; ++i) {
      std::string asked = std::to_string(i * 7919 % 100000), answered = "in the beginning";
      if (!noise_is_asked) std::swap(asked, answered);
      chats << nlohmann::json{{"messages",
                               {{{"role", "user"}, {"content", asked}},
                                {{"role", "assistant"}, {"content", answered}}}}}
            << "\n";
    }
  }

  config::TrainConfig Config(const std::string& more) {
    config::TrainConfig config =
        ParseTrainConfig(std::string(kCommon) + "train_steps: 60\noptimizer: {lr: 1e-2}\n" + more);
    config.set_init_from(base_);
    config.mutable_data()->set_seq_len(96);
    config::DataSource* source = config.mutable_data()->add_sources();
    source->set_path(folder_ / "chats.jsonl");
    source->set_kind(config::SOURCE_KIND_CHAT);
    return config;
  }

  TempFolder folder_;
  std::string base_;
};

TEST_F(FineTuning, TheLossOnAnswersFalls) {
  TrainTo(Config(""), folder_ / "tuned");
  const auto lines = Metrics(folder_ / "tuned");
  ASSERT_EQ(lines.size(), 60u);
  EXPECT_GT(lines.front()["loss"].get<double>(), 3.0);
  EXPECT_LT(lines.back()["loss"].get<double>(), 0.1);
  for (const auto& [name, bytes] : Tensors(base_)) {
    EXPECT_NE(bytes, Tensors(folder_ / "tuned/checkpoints/latest").at(name)) << name;
  }
  EXPECT_TRUE(std::filesystem::exists(folder_ / "tuned/checkpoints/latest/tokenizer.json"));
}

TEST_F(FineTuning, TheLossIsOnAnswersAlone) {
  WriteChats(false);
  TrainTo(Config(""), folder_ / "tuned");
  // Questions, all alike now, would bring it down.
  EXPECT_GT(Metrics(folder_ / "tuned").back()["loss"].get<double>(), 1.0);
}

TEST_F(FineTuning, FrozenParametersKeepTheirBits) {
  TrainTo(Config("frozen_parameters: ['model.embed_tokens.*', '*.self_attn.*']\n"),
          folder_ / "tuned");
  const auto before = Tensors(base_), after = Tensors(folder_ / "tuned/checkpoints/latest");
  ASSERT_EQ(before.size(), after.size());
  int frozen = 0;
  for (const auto& [name, bytes] : before) {
    const bool keeps =
        name.starts_with("model.embed_tokens.") || name.find(".self_attn.") != std::string::npos;
    frozen += keeps;
    EXPECT_EQ(bytes == after.at(name), keeps) << name;
  }
  EXPECT_EQ(frozen, 1 + 2 * 4);
  EXPECT_LT(Metrics(folder_ / "tuned").back()["loss"].get<double>(), 1.0);
}

// A step whose rows hold no answer at all.
TEST(TrainStepWithoutLossTokens, IsFiniteAndMovesNothing) {
  HostAllocator allocator;
  PackedWeights packed;
  config::TrainConfig config = ParseTrainConfig(
      std::string(kDeepSeek) +
      "z_loss_coef: 1e-4\nmoe: {balance_loss_coef: 0}\noptimizer: {weight_decay: 0}\n");
  Context ctx{.allocator = &allocator, .packed = &packed};
  auto model = CreateModel(ctx, {.model = config.model()}, {.gradients = true});
  ASSERT_TRUE(model.ok()) << Message(model.status());
  ctx.parameters = &(*model)->parameters();
  InitializeParameters(ctx, 1);
  StepBatches batches{.tokens = 32, .sequences = 1};
  PackedBatch& rows = batches.micro.emplace_back();
  for (int t = 0; t < 32; ++t) {
    rows.ids.push_back(t * 5 % 256);
    rows.positions.push_back(t);
    rows.targets.push_back(-1);
  }
  rows.offsets = rows.row_offsets = {0, 32};
  TrainStep runner(**model, config, {});
  const StepLosses losses = runner.Run(ctx, batches).value();
  EXPECT_EQ(losses.total(), 0.0);
  ParameterStore& store = (*model)->parameters();
  EXPECT_EQ(std::sqrt(SquaredNorm(ctx, store, TrainableChunks(store))), 0.0);
  auto optimizer = MakeOptimizer(config.optimizer(), store, allocator);
  ASSERT_TRUE(optimizer.ok());
  (*optimizer)->AdoptWeights();
  const Tensor& weights = store.buckets()[0].weights;
  const std::string before(reinterpret_cast<const char*>(weights.raw()), weights.bytes());
  (*optimizer)->Step(ctx, {.lr = 0.01, .gradient_scale = ClipFactor(0.0, 1.0)});
  EXPECT_EQ(std::memcmp(before.data(), weights.raw(), weights.bytes()), 0);
}

// Whole runs of it: every row's loss is masked away.
TEST_F(FineTuning, ChatsWithoutAnswersTrainNothingAndEndWell) {
  std::ofstream chats(folder_ / "chats.jsonl");
  for (int i = 0; i < 60; ++i) {
    chats << R"({"messages": [{"role": "user", "content": "and nobody answered"}]})"
          << "\n";
  }
  chats.close();
  config::TrainConfig config = Config("");
  config.set_train_steps(3);
  auto trainer = OpenRun(config, folder_ / "tuned", 1);
  ASSERT_TRUE(trainer.ok()) << Message(trainer.status());
  ASSERT_TRUE((*trainer)->Run().ok());
  for (const auto& line : Metrics(folder_ / "tuned")) {
    EXPECT_EQ(line["loss"].get<double>(), 0.0);
    EXPECT_EQ(line["grad_norm"].get<double>(), 0.0);
  }
}

TEST(RouterBias, FollowsTheLoad) {
  TempFolder folder;
  ASSERT_TRUE(testing_run::WriteCorpus(folder / "corpus", 256, 60, 2).ok());
  const std::string name = "model.layers.1.mlp.gate.e_score_correction_bias";
  auto biases = [&](const std::string& rate, int steps) {
    config::TrainConfig config = ParseTrainConfig(
        std::string(kCommon) + kDeepSeek + "data: {seq_len: 64}\ndtype: f32\nmoe: {" +
        "balance_loss_coef: 0, router_bias_update_rate: " + rate + "}\n");
    config.set_train_steps(steps);
    config.mutable_data()->add_sources()->set_path(folder / "corpus");
    const std::string output = folder / (rate + "-" + std::to_string(steps));
    TrainTo(config, output);
    const std::string bytes = Tensors(output + "/checkpoints/latest").at(name);
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  EXPECT_EQ(biases("0", 3), std::vector<float>(8, 0.0f));
  const std::vector<float> once = biases("0.125", 1);
  int up = 0, down = 0;
  for (float value : once) {
    EXPECT_TRUE(value == 0.125f || value == -0.125f || value == 0.0f) << value;
    up += value > 0;
    down += value < 0;
  }
  EXPECT_GT(up, 0);
  EXPECT_GT(down, 0);
  EXPECT_NE(biases("0.125", 6), once);
}

}  // namespace
}  // namespace cadre
