// What layouts are compared on: models as small as their features allow, and runs of them.
#pragma once

#include <filesystem>
#include <map>
#include <ostream>
#include <string>
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
data: {seq_len: 32, validation_fraction: 0.1}
lr_schedule: {warmup_steps: 1}
eval: {batches: 3}
log: {tensorboard: false}
checkpoint: {interval: 0}
global_batch_size: 8
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
inline constexpr std::string_view kLadder = "/ladder";

struct Case {
  const char* model;
  int world;
  const char* parallel;  // fields of ParallelConfig
};

inline void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << " on " << c.world << " ranks {" << c.parallel << "}";
}

// Reads the same corpus in every run.
class Runs {
 public:
  Runs() {
    const absl::Status written = WriteCorpus(folder_ / "corpus", kVocabulary, 200, 5);
    CADRE_CHECK(written.ok(), "{}", Message(written));
  }

  config::TrainConfig Config(const std::string& model, const std::string& dtype,
                             const std::string& parallel) const {
    const bool ladder = model.ends_with(kLadder);
    const std::string base = model.substr(0, model.size() - (ladder ? kLadder.size() : 0));
    config::TrainConfig config = ParseTrainConfig(kRun + kModels.at(base) + "dtype: " + dtype +
                                                  "\ntrain_steps: " + std::to_string(kSteps) +
                                                  "\n" + "parallel: {" + parallel + "}\n");
    if (ladder) config.mutable_model()->set_residual("ladder");
    config.mutable_data()->add_sources()->set_path(folder_ / "corpus");
    config.mutable_eval()->set_interval(kSteps / 2);
    return config;
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

  // The losses of the second half of the steps, which goes on under `second` from what `first`
  // saved.
  std::vector<double> Continue(const std::string& model, const std::string& dtype,
                               const Case& first, const Case& second) {
    const std::string output = NewFolder();
    config::TrainConfig config = Config(model, dtype, first.parallel);
    config.mutable_checkpoint()->set_interval(kSteps / 2);
    TrainUnder(config, first.world, output);
    const std::string last = fmt::format("{}/checkpoints/step-{:06}", output, kSteps);
    CADRE_CHECK(std::filesystem::remove_all(last) > 0);
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
  std::string NewFolder() { return folder_ / ("run" + std::to_string(runs_++)); }

  TempFolder folder_;
  int runs_ = 0;
  std::map<std::string, LayoutRun> references_;
};

}  // namespace cadre::testing_run
