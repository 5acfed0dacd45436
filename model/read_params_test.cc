// Loading into panels: the same bits as from weights that products pack themselves.
#include "model/read_params.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "core/host_allocator.h"
#include "core/ops/linear_cross_entropy.h"
#include "model/initialize.h"
#include "model/model.h"

namespace cadre {
namespace {

constexpr char kConfig[] = R"({"model_type": "qwen3_moe", "vocab_size": 61, "hidden_size": 32,
  "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
  "moe_intermediate_size": 24, "max_position_embeddings": 96, "tie_word_embeddings": TIED})";

std::string SavedModel(HostAllocator& memory, bool tied) {
  std::string json = kConfig;
  json.replace(json.find("TIED"), 4, tied ? "true" : "false");
  auto config = ParseHfConfig(json, "config.json");
  CADRE_CHECK(config.ok(), "{}", Message(config.status()));
  Context ctx{.allocator = &memory};
  auto model = CreateModel(ctx, *std::move(config), {});
  CADRE_CHECK(model.ok(), "{}", Message(model.status()));
  ctx.parameters = &(*model)->parameters();
  InitializeParameters(ctx, 3);
  const std::string folder = testing::TempDir() + (tied ? "/pack_tied" : "/pack");
  std::filesystem::remove_all(folder);
  const absl::Status saved =
      SaveWeights((*model)->parameters(), WholeWeights((*model)->parameters()),
                  {.folder = folder, .config = &(*model)->config(), .max_shard_bytes = 40000});
  CADRE_CHECK(saved.ok(), "{}", Message(saved));
  return folder;
}

class ReadParamsTest : public testing::TestWithParam<bool> {};

TEST_P(ReadParamsTest, KeepsWhatProductsReadAndNothingTwice) {
  HostAllocator memory;
  const std::string folder = SavedModel(memory, GetParam());
  Context ctx{.allocator = &memory};
  auto plain = LoadModel(ctx, folder, {});
  auto panels = LoadModel(ctx, folder, {.weights = WeightFormat::kPanels, .pack = true});
  ASSERT_TRUE(plain.ok() && panels.ok());
  const std::vector<std::vector<int32_t>> sequences = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}};
  const Batch batch = PackSequences(memory, sequences);
  PackedWeights used;
  ctx.parameters = &(*plain)->parameters();
  ctx.packed = &used;
  const Tensor expected = (*plain)->decoder().Forward(ctx, batch).hidden.value;
  const Tensor expected_logits = ops::Logits(ctx, expected, (*plain)->decoder().head());
  const size_t before = (*panels)->packed().bytes();
  EXPECT_EQ(before > 0, GetParam());  // a head that is the embedding
  ctx.parameters = &(*panels)->parameters();
  ctx.packed = &(*panels)->packed();
  const Tensor got = (*panels)->decoder().Forward(ctx, batch).hidden.value;
  const Tensor logits = ops::Logits(ctx, got, (*panels)->decoder().head());
  EXPECT_EQ(std::memcmp(got.raw(), expected.raw(), got.bytes()), 0);
  EXPECT_EQ(std::memcmp(logits.raw(), expected_logits.raw(), logits.bytes()), 0);
  // Nothing was left to pack but routers.
  const auto& store = (*panels)->parameters();
  size_t routers = 0;
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    EXPECT_EQ(spec.quantized, spec.use != ParamUse::kOther) << spec.name;
    if (spec.layer >= 0 && spec.shape.rank() == 2 && !spec.quantized) ++routers;
  }
  EXPECT_EQ(routers, 2u);
  EXPECT_LE((*panels)->packed().bytes(), before + routers * 64 * 16 * 2);
  EXPECT_EQ((*plain)->packed().bytes(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Heads, ReadParamsTest, testing::Bool());

}  // namespace
}  // namespace cadre
