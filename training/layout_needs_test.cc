#include "training/layout_needs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/config.h"

namespace cadre {
namespace {

constexpr char kDense[] =
    "model: {model_type: llama, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 128}\n";
constexpr char kMixture[] =
    "model: {model_type: qwen3_moe, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, num_experts: 8, "
    "num_experts_per_tok: 2, moe_intermediate_size: 32, vocab_size: 128}\n";
constexpr char kBiased[] =
    "model: {model_type: deepseek_v3, hidden_size: 64, intermediate_size: 96, num_hidden_layers: "
    "2, "
    "num_attention_heads: 4, num_key_value_heads: 4, q_lora_rank: 32, kv_lora_rank: 16, "
    "qk_nope_head_dim: 16, qk_rope_head_dim: 8, v_head_dim: 16, n_routed_experts: 8, "
    "n_shared_experts: 1, num_experts_per_tok: 2, n_group: 2, topk_group: 1, "
    "first_k_dense_replace: 1, moe_intermediate_size: 32, vocab_size: 128}\n";

absl::Status Checked(const std::string& yaml) {
  config::TrainConfig config;
  const absl::Status parsed = ParseYaml(yaml, "test", &config);
  CADRE_CHECK(parsed.ok(), "{}", Message(parsed));
  return LayoutOfRun(config, 1).status();
}

std::string Refusal(const std::string& yaml) {
  const absl::Status status = Checked(yaml);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return Message(status);
}

TEST(LayoutOfRun, RefusesWhatAModelWithoutExpertsDoesNothingWith) {
  const std::string dense = kDense;
  EXPECT_EQ(Refusal(dense + "moe: {balance_loss_coef: 0.01}\n"),
            "moe.balance_loss_coef 0.01: llama has no experts; allowed: 0, 0.001");
  EXPECT_EQ(Refusal(dense + "moe: {balance_scope: microbatch}\n"),
            "moe.balance_scope: llama has no experts; allowed: sequence");
  EXPECT_EQ(Refusal(dense + "moe: {router_z_loss_coef: 0.5}\n"),
            "moe.router_z_loss_coef 0.5: llama has no experts; allowed: 0");
  EXPECT_EQ(Refusal(dense + "moe: {capacity_factor: 1.25}\n"),
            "moe.capacity_factor 1.25: llama has no experts; allowed: 0");
  EXPECT_EQ(Refusal(dense + "parallel: {expert_tensor_parallel_size: 1}\n"),
            "expert_tensor_parallel_size 1: the model has no experts; allowed: 0");
}

TEST(LayoutOfRun, RefusesABiasUpdateWithoutABias) {
  const std::string update = "moe: {router_bias_update_rate: 0.001}\n";
  EXPECT_EQ(Refusal(kMixture + update),
            "moe.router_bias_update_rate 0.001: qwen3_moe has no router with a bias that chooses; "
            "allowed: 0");
  EXPECT_EQ(Refusal(kDense + update),
            "moe.router_bias_update_rate 0.001: llama has no router with a bias that chooses; "
            "allowed: 0");
  EXPECT_TRUE(Checked(kBiased + update).ok());
}

// A run's config.yaml says them all.
TEST(LayoutOfRun, TakesEveryDefaultWrittenOut) {
  for (const char* model : {kDense, kMixture, kBiased}) {
    config::TrainConfig config;
    ASSERT_TRUE(ParseYaml(model, "test", &config).ok());
    const absl::Status status = Checked(DumpYaml(config));
    EXPECT_TRUE(status.ok()) << Message(status);
  }
  EXPECT_TRUE(Checked(std::string(kDense) + "moe: {balance_loss_coef: 0}\n").ok());
  EXPECT_TRUE(Checked(std::string(kMixture) +
                      "moe: {balance_loss_coef: 0.01, balance_scope: microbatch, "
                      "router_z_loss_coef: 0.001, capacity_factor: 1.25}\n")
                  .ok());
}

}  // namespace
}  // namespace cadre
