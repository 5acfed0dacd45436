// What layouts are compared on: models as small as their features allow, and runs of them.
#pragma once

#include <filesystem>
#include <map>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "tests/layout_run.h"
#include "tests/training_run.h"

namespace cadre::testing_run {

inline constexpr int kVocabulary = 128;
// What threads do to one another shows in the first steps, each of which takes seconds under
// ThreadSanitizer.
#ifdef __SANITIZE_THREAD__
inline constexpr size_t kSteps = 2;
#else
inline constexpr size_t kSteps = 20;
#endif
inline constexpr double kCloseChoice = 1e-5;  // between scores

inline const char kRun[] = R"(
data: {validation_fraction: 0.1}
lr_schedule: {warmup_steps: 1}
eval: {batches: 3}
log: {tensorboard: false}
checkpoint: {interval: 0}
micro_batch_size: 1
)";

// Models by name, as small as their features allow.
inline const std::map<std::string, std::string> kModels = {
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
    {"frozen",  // the first stage and parts of each layer are not trained
     "model: {model_type: llama, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
     "num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 128}\n"
     "frozen_parameters: ['model.embed_tokens.*', '*.self_attn.*']\n"},
    {"frozen-moe",
     "model: {model_type: qwen3_moe, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
     "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, num_experts: 8, "
     "num_experts_per_tok: 2, moe_intermediate_size: 32, norm_topk_prob: true, vocab_size: 128}\n"
     "frozen_parameters: ['*.mlp.experts.*', 'lm_head.*']\n"},
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
    {"deep",
     "model: {model_type: llama, hidden_size: 48, intermediate_size: 48, num_hidden_layers: 5, "
     "num_attention_heads: 3, num_key_value_heads: 1, vocab_size: 128, tie_word_embeddings: "
     "true}\n"},
    {"sixes",  // what three and six ranks can share, too
     "model: {model_type: llama, hidden_size: 96, intermediate_size: 96, num_hidden_layers: 2, "
     "num_attention_heads: 6, num_key_value_heads: 3, vocab_size: 130}\n"},
    {"sixes-moe",
     "model: {model_type: qwen3_moe, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
     "num_attention_heads: 6, num_key_value_heads: 1, head_dim: 16, num_experts: 6, "
     "num_experts_per_tok: 2, moe_intermediate_size: 48, norm_topk_prob: true, vocab_size: 128}\n"
     "moe: {balance_loss_coef: 0.01, router_z_loss_coef: 0.001}\n"},
    {"sixes-bias",
     "model: {model_type: deepseek_v3, hidden_size: 64, intermediate_size: 96, num_hidden_layers: "
     "2, "
     "num_attention_heads: 6, num_key_value_heads: 6, q_lora_rank: 32, kv_lora_rank: 16, "
     "qk_nope_head_dim: 16, qk_rope_head_dim: 8, v_head_dim: 16, n_routed_experts: 6, "
     "n_shared_experts: 1, num_experts_per_tok: 2, n_group: 2, topk_group: 1, "
     "first_k_dense_replace: 1, moe_intermediate_size: 48, routed_scaling_factor: 1.5, "
     "norm_topk_prob: true, vocab_size: 128}\n"
     "moe: {router_bias_update_rate: 0.01}\n"},
};

// A name that ends so is that of a model above with ladder layers alone.
inline constexpr std::string_view kLadder = "/ladder";

// A step's samples and their tokens.
struct Batch {
  int samples = 8;
  int seq_len = 32;
};

struct Case {
  std::string model;
  int world = 1;
  std::string parallel = {};  // fields of ParallelConfig
  Batch batch = {};
};

inline void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << " on " << c.world << " ranks {" << c.parallel << "}, " << c.batch.samples
       << " x " << c.batch.seq_len << " tokens";
}

// Reads the same corpus in every run.
class Runs {
 public:
  Runs() {
    const absl::Status written = WriteCorpus(folder_ / "corpus", kVocabulary, 200, 5);
    CADRE_CHECK(written.ok(), "{}", Message(written));
  }

  config::TrainConfig Config(const Case& c, const std::string& dtype) const {
    const bool ladder = c.model.ends_with(kLadder);
    const std::string base = c.model.substr(0, c.model.size() - (ladder ? kLadder.size() : 0));
    config::TrainConfig config = ParseTrainConfig(fmt::format(
        "{}{}dtype: {}\nparallel: {{{}}}\n", kRun, kModels.at(base), dtype, c.parallel));
    if (ladder) config.mutable_model()->set_residual("ladder");
    config.set_train_steps(kSteps);
    config.set_global_batch_size(c.batch.samples);
    config.mutable_data()->set_seq_len(c.batch.seq_len);
    config.mutable_data()->add_sources()->set_path(folder_ / "corpus");
    config.mutable_eval()->set_interval(kSteps / 2);
    return config;
  }

  LayoutRun Train(const Case& c, const std::string& dtype) {
    return TrainUnder(Config(c, dtype), c.world, NewFolder());
  }

  // A few steps with a fault in them.
  LayoutRun TrainWrongly(const Case& c, const Fault& fault, int steps = 2) {
    config::TrainConfig config = Config(c, "f64");
    config.set_train_steps(steps);
    return TrainUnder(config, c.world, NewFolder(), fault);
  }

  // How the others' runs end where rank 1 opens its run and leaves.
  std::vector<absl::Status> LoseRankOne(const Case& c) {
    return testing_run::LoseRankOne(Config(c, "f32"), c.world, NewFolder());
  }

  // The losses of the second half of the steps: of a run that stays under the layout, and of one
  // that goes on under another from what the first saved. The cases differ in that alone.
  struct Halves {
    std::vector<double> stayed, went_on;
  };
  Halves Continue(const Case& first, const Case& second, const std::string& dtype) {
    const std::string output = NewFolder();
    config::TrainConfig config = Config(first, dtype);
    config.mutable_checkpoint()->set_interval(kSteps / 2);
    std::vector<double> losses = TrainUnder(config, first.world, output).losses;
    losses.erase(losses.begin(), losses.begin() + kSteps / 2);
    const std::string last = fmt::format("{}/checkpoints/step-{:06}", output, kSteps);
    CADRE_CHECK(std::filesystem::remove_all(last) > 0);
    return {losses, TrainUnder(Config(second, dtype), second.world, output).losses};
  }

  // What one process does with the case's model and batch, once for each.
  const LayoutRun& Reference(const Case& c, const std::string& dtype) {
    auto& run = references_[{c.model, dtype, c.batch.samples, c.batch.seq_len}];
    if (run.losses.empty()) run = Train({c.model, 1, "", c.batch}, dtype);
    return run;
  }

 private:
  std::string NewFolder() { return folder_ / ("run" + std::to_string(runs_++)); }

  TempFolder folder_;
  int runs_ = 0;
  std::map<std::tuple<std::string, std::string, int, int>, LayoutRun> references_;
};

}  // namespace cadre::testing_run
