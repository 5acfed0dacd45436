#include "model/model_cost.h"

#include <gtest/gtest.h>

#include "model/decoder.h"
#include "model/hf_config.h"

namespace cadre {
namespace {

const char* const kFixtures[] = {"llama", "llama_rope_llama3", "mistral",     "qwen2",
                                 "qwen3", "mixtral",           "qwen2_moe",   "qwen3_moe",
                                 "olmoe", "deepseek_v2",       "deepseek_v3", "gpt_oss"};

TEST(ModelCost, CountsEveryParameter) {
  for (const char* name : kFixtures) {
    absl::StatusOr<HfConfig> config = LoadHfConfig(std::string("tests/golden/fixtures/") + name);
    ASSERT_TRUE(config.ok()) << Message(config.status());
    DecoderSpec spec = *ResolveModelConfig(config->model);
    ParameterStore store;
    ASSERT_TRUE(Decoder::Create(spec, {}, store).ok());
    ParameterCounts counts = CountParameters(spec);
    EXPECT_EQ(counts.total, store.total_elements()) << name;
    bool mixture = spec.layers.back().is_moe;
    EXPECT_EQ(counts.active < counts.total, mixture) << name;
  }
}

TEST(ModelCost, FlopsOfADenseModelByHand) {
  DecoderSpec spec{.vocab = 10, .hidden = 4};
  LayerSpec layer;
  layer.attention = {.heads = 2, .kv_heads = 1, .head_dim = 2, .value_dim = 2};
  layer.mlp.intermediate = 8;
  spec.layers = {layer};
  // qkv 4 x 8, output 4 x 4, MLP 3 x 4 x 8, head 10 x 4; a token of 4 sees 2.5 keys on average.
  double weights = 32 + 16 + 96 + 40, attention = 2 * (2 + 2) * 2.5;
  EXPECT_DOUBLE_EQ(ModelFlopsPerToken(spec, 4), 6 * (weights + attention));
  spec.layers[0].attention.window = 2;
  EXPECT_DOUBLE_EQ(ModelFlopsPerToken(spec, 4), 6 * (weights + 2 * (2 + 2) * 1.75));
  EXPECT_EQ(KvBytesPerToken(spec, 2), 8);
}

}  // namespace
}  // namespace cadre
