#include "serving/step_cost.h"

#include <gtest/gtest.h>

#include <vector>

namespace cadre {
namespace {

// D 8, V 16, heads 2 of 4 with one KV head; a dense layer of 12, and one of 4 experts of 6, two a
// token, that looks back over 3 tokens.
DecoderSpec TinySpec() {
  DecoderSpec spec{.vocab = 16, .hidden = 8};
  LayerSpec dense{.attention = {.heads = 2, .kv_heads = 1, .head_dim = 4, .value_dim = 4},
                  .mlp = {.intermediate = 12}};
  LayerSpec mixture{.attention = dense.attention, .is_moe = true};
  mixture.attention.window = 3;
  mixture.moe.intermediate = 6;
  mixture.moe.router.experts = 4;
  mixture.moe.router.top_k = 2;
  spec.layers = {dense, mixture};
  return spec;
}

// Projections of attention: q 8 x 8, k and v 4 x 8 each, o 8 x 8.
constexpr double kAttention = 64 + 32 + 32 + 64;
constexpr double kDense = 3 * 8 * 12, kExpert = 3 * 8 * 6, kRouter = 8 * 4, kHead = 16 * 8;
constexpr double kLayers = 2 * kAttention + kDense + kRouter;  // without experts
// For each key: of the products with the query heads, and with the values.
constexpr double kElements = 2 * (4 + 4);

class StepCostTest : public testing::Test {
 protected:
  StepCostTest() {
    const DecoderSpec spec = TinySpec();
    ops::KvLayout layout{.dtype = DType::kF32, .kv_heads = 1, .key_dim = 4, .value_dim = 4};
    layout.block_size = 16;
    const std::vector<ops::KvLayout> layouts(2, layout);
    cost_ = StepCost(spec, {.layers = 4, .experts = 2, .head = 1}, layouts);
    slot_ = static_cast<double>(layout.block_bytes()) / 16;
  }
  static StepPlan Plan(std::vector<int32_t> tokens, std::vector<int32_t> contexts,
                       std::vector<int64_t> sampled) {
    StepPlan plan{.offsets = {0}, .sample_rows = std::move(sampled)};
    for (int32_t n : tokens) plan.offsets.push_back(plan.offsets.back() + n);
    plan.ids.resize(static_cast<size_t>(plan.offsets.back()));
    plan.tables.push_back({.context_lengths = std::move(contexts)});
    return plan;
  }

  StepCost cost_;
  double slot_ = 0;
};

TEST_F(StepCostTest, ATokenThatIsDecodedReadsWhatItIsMultipliedWith) {
  const std::vector<StepPlan> plans = {Plan({1}, {10}, {0})};
  const StepWork work = cost_.Of(plans);
  // Ten keys in the first layer, three in the one with a window.
  EXPECT_DOUBLE_EQ(work.flops, 2 * (kLayers + 2 * kExpert + kHead) + 2 * kElements * (10 + 3));
  EXPECT_DOUBLE_EQ(work.bytes, 4 * kLayers + 2 * (2 * kExpert) + kHead + slot_ * (10 + 3));
}

TEST_F(StepCostTest, AStepReadsWeightsOnceAndNoMoreExpertsThanThereAre) {
  // A prompt's first five tokens, and one that is decoded after three others.
  const std::vector<StepPlan> plans = {Plan({5, 1}, {5, 4}, {5})};
  const StepWork work = cost_.Of(plans);
  const double full = (1 + 2 + 3 + 4 + 5) + 4, windowed = (1 + 2 + 3 + 3 + 3) + 3;
  EXPECT_DOUBLE_EQ(work.flops,
                   6 * 2 * (kLayers + 2 * kExpert) + 2 * kHead + 2 * kElements * (full + windowed));
  // The window of the chunk's first token begins before the chunk's last one's.
  EXPECT_DOUBLE_EQ(work.bytes,
                   4 * kLayers + 2 * (4 * kExpert) + kHead + slot_ * ((5 + 4) + (5 + 3)));
}

TEST_F(StepCostTest, AChunkWithinAPromptHasNoLogits) {
  const std::vector<StepPlan> plans = {Plan({4}, {12}, {})};
  const StepWork work = cost_.Of(plans);
  EXPECT_DOUBLE_EQ(work.flops,
                   4 * 2 * (kLayers + 2 * kExpert) + 2 * kElements * ((9 + 10 + 11 + 12) + 4 * 3));
  EXPECT_DOUBLE_EQ(work.bytes, 4 * kLayers + 2 * (4 * kExpert) + slot_ * (12 + 6));
}

TEST_F(StepCostTest, EachLaneWithTokensReadsItsWeightsAndAllShareExperts) {
  const std::vector<StepPlan> plans = {Plan({1}, {1}, {0}), Plan({1}, {1}, {0}), StepPlan{}};
  const StepWork work = cost_.Of(plans);
  EXPECT_DOUBLE_EQ(work.bytes, 2 * (4 * kLayers + kHead) + 2 * (4 * kExpert) + slot_ * 2 * (1 + 1));
}

TEST_F(StepCostTest, PromptsThatAreReadByLayersCountAsProducts) {
  const std::vector<StepPlan> plans = {StepPlan{}};
  EXPECT_DOUBLE_EQ(cost_.Of(plans, 3).flops, 3 * 2 * (kLayers + 2 * kExpert));
  EXPECT_DOUBLE_EQ(cost_.Of(plans).bytes, 0);
}

TEST(WeightBytes, AreThoseThatTheParametersTake) {
  ParameterStore store;
  store.Add({.name = "embedding", .shape = {16, 8}});
  store.Add({.name = "norm", .shape = {8}, .layer = 0, .fp32 = true});
  store.Add({.name = "q", .shape = {8, 8}, .layer = 0, .use = ParamUse::kProjection});
  store.Add({.name = "router", .shape = {8, 8}, .layer = 0, .fp32 = true});
  store.Add({.name = "head", .shape = {16, 8}, .use = ParamUse::kHead});
  store.MakeBuckets(DType::kBF16);
  const WeightBytes bytes = WeightBytes::Of(store, DType::kBF16);
  EXPECT_DOUBLE_EQ(bytes.layers, 3);  // half of it in bf16, half in fp32
  EXPECT_DOUBLE_EQ(bytes.experts, 2);
  EXPECT_DOUBLE_EQ(bytes.head, 2);
}

}  // namespace
}  // namespace cadre
