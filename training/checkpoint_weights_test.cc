#include "training/checkpoint_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/file.h"
#include "core/safetensors_folder.h"
#include "model/initialize.h"
#include "model/model.h"
#include "training/checkpoint_test_util.h"

namespace cadre {
namespace {

using testing::HasSubstr;

constexpr char kConfig[] = R"({
  "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 96,
  "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4,
  "num_experts_per_tok": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
  "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu"})";

struct ModelRun {
  explicit ModelRun(DType dtype) {
    ctx.allocator = &allocator;
    auto config = ParseHfConfig(kConfig, "config.json");
    CADRE_CHECK(config.ok(), "{}", Message(config.status()));
    auto made = CreateModel(ctx, *config, {.dtype = dtype, .gradients = true});
    CADRE_CHECK(made.ok(), "{}", Message(made.status()));
    model = std::move(*made);
    ctx.parameters = &model->parameters();
    InitializeParameters(ctx, 5);
    optimizer =
        std::move(*MakeOptimizer(config::OptimizerConfig(), model->parameters(), allocator));
    type = WeightType(dtype);
  }

  void Step() {
    for (const ParamBucket& bucket : model->parameters().buckets()) {
      if (!bucket.gradients.defined()) continue;
      TestRun::ForEach(bucket.gradients, [](int64_t i) { return (i % 13 - 6) * 0.01; });
    }
    optimizer->Step(ctx, {.lr = 0.01});
    ++step;
  }

  absl::Status Save(const std::string& root) {
    CheckpointSaver saver({.root = root, .save_weights = HfSaveWeights(*model, {.type = type})},
                          model->parameters(), *optimizer, allocator);
    saver.Save(ctx, {.step = step, .updates = optimizer->updates(), .config = "a: 1\n"});
    return saver.Wait();
  }

  std::vector<std::byte> Bytes() const {
    std::vector<std::byte> all;
    for (const ParamBucket& bucket : model->parameters().buckets()) {
      all.insert(all.end(), bucket.weights.raw(), bucket.weights.raw() + bucket.weights.bytes());
    }
    return all;
  }

  HostAllocator allocator;
  Context ctx;
  std::unique_ptr<Model> model;
  std::unique_ptr<Optimizer> optimizer;
  StoredType type;
  int64_t step = 0;
};

TEST(CheckpointWeights, ACheckpointIsAHuggingFaceFolderAndResumes) {
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
    std::string root = FreshFolder("hf");
    ModelRun run(dtype);
    run.Step();
    absl::Status saved = run.Save(root);
    ASSERT_TRUE(saved.ok()) << Message(saved);
    auto found = ResolveCheckpoint(root);
    ASSERT_TRUE(found.ok()) << Message(found.status());
    EXPECT_TRUE(ResolveCheckpoint(root + "/latest").ok());
    // Opens as a model, without the optimizer.
    auto plain = LoadModel(run.ctx, found->path, {.dtype = dtype});
    ASSERT_TRUE(plain.ok()) << Message(plain.status());
    ModelRun resumed(dtype);
    resumed.Step();
    resumed.Step();
    absl::Status loaded = LoadCheckpoint(*found, "", HfLoadWeights(resumed.ctx, *resumed.model),
                                         resumed.model->parameters(), *resumed.optimizer);
    ASSERT_TRUE(loaded.ok()) << Message(loaded);
    EXPECT_EQ(resumed.Bytes(), run.Bytes());
    run.Step();
    resumed.Step();
    EXPECT_EQ(resumed.Bytes(), run.Bytes());
    std::filesystem::remove_all(root);
  }
}

TEST(CheckpointWeights, ConvertsToEveryType) {
  std::string root = FreshFolder("convert");
  ModelRun run(DType::kBF16);
  run.Step();
  ASSERT_TRUE(run.Save(root).ok());
  auto found = ResolveCheckpoint(root);
  ASSERT_TRUE(found.ok());
  auto convert = [&](const std::string& name, std::optional<StoredType> type) {
    absl::Status status =
        ConvertCheckpoint(run.ctx, *found, {.to = root + "/" + name, .type = type});
    EXPECT_TRUE(status.ok()) << Message(status);
    return SafetensorsFolder::Open(root + "/" + name);
  };
  auto same = convert("same", std::nullopt), bf16 = convert("bf16", StoredType::kBF16),
       f32 = convert("f32", StoredType::kF32);
  ASSERT_TRUE(same.ok() && bf16.ok() && f32.ok());
  ASSERT_EQ(same->tensors().size(), bf16->tensors().size());
  for (const auto& tensor : same->tensors()) {
    auto other = bf16->Find(tensor.entry->name), wide = f32->Find(tensor.entry->name);
    ASSERT_NE(other.entry, nullptr) << tensor.entry->name;
    ASSERT_NE(wide.entry, nullptr) << tensor.entry->name;
    EXPECT_TRUE(std::equal(tensor.Bytes().begin(), tensor.Bytes().end(), other.Bytes().begin(),
                           other.Bytes().end()))
        << tensor.entry->name;
    EXPECT_EQ(wide.entry->type, StoredType::kF32);
    // The masters, not widened bf16: rounding them gives the bf16 weights.
    bool precise = false;
    for (size_t i = 0; i < wide.Bytes().size() / 4; ++i) {
      float value;
      uint16_t bits;
      std::memcpy(&value, wide.Bytes().data() + 4 * i, 4);
      std::memcpy(&bits, tensor.Bytes().data() + 2 * i, 2);
      ASSERT_EQ(BF16(value).bits, bits);
      precise |= static_cast<float>(BF16(value)) != value;
    }
    EXPECT_TRUE(precise) << tensor.entry->name;
  }
  EXPECT_FALSE(std::filesystem::exists(root + "/same/optimizer"));
  EXPECT_FALSE(std::filesystem::exists(root + "/same/manifest.json"));
  EXPECT_TRUE(LoadModel(run.ctx, root + "/f32", {.dtype = DType::kF32}).ok());
  absl::Status again = ConvertCheckpoint(run.ctx, *found, {.to = root + "/same"});
  EXPECT_THAT(Message(again), HasSubstr("not empty"));
  std::filesystem::remove_all(root);
}

TEST(CheckpointWeights, ResolveNamesWhatIsWrong) {
  std::string root = FreshFolder("resolve");
  EXPECT_EQ(ResolveCheckpoint(root).status().code(), absl::StatusCode::kNotFound);
  ModelRun run(DType::kBF16);
  ASSERT_TRUE(run.Save(root).ok());
  std::filesystem::remove(root + "/step-000000/model.safetensors");
  EXPECT_THAT(Message(ResolveCheckpoint(root + "/step-000000").status()),
              HasSubstr("model.safetensors: missing"));
  EXPECT_EQ(ResolveCheckpoint(root).status().code(), absl::StatusCode::kDataLoss);
  std::filesystem::remove_all(root);
}

}  // namespace
}  // namespace cadre
