// The two models that the benches run: a dense llama of 162M parameters and a mixture of eight
// experts, two a token, of the same active size. bench/peers/pytorch_train.py has the same.
#pragma once

#include "model/hf_config.h"

namespace cadre::bench {

inline HfConfig BenchConfig(bool mixture) {
  HfConfig hf;
  config::ModelConfig& model = hf.model;
  model.set_model_type(mixture ? "mixtral" : "llama");
  model.set_vocab_size(32000);
  model.set_hidden_size(768);
  model.set_num_hidden_layers(12);
  model.set_num_attention_heads(12);
  model.set_num_key_value_heads(12);
  model.set_intermediate_size(mixture ? 1536 : 3072);
  model.set_rms_norm_eps(1e-6);
  model.set_max_position_embeddings(2048);
  model.set_tie_word_embeddings(false);
  if (mixture) {
    model.set_num_local_experts(8);
    model.set_num_experts_per_tok(2);
  }
  return hf;
}

// A llama of 850M parameters: what decodes from memory rather than from a third-level cache.
inline HfConfig LargeConfig() {
  HfConfig hf = BenchConfig(false);
  config::ModelConfig& model = hf.model;
  model.set_hidden_size(2048);
  model.set_num_hidden_layers(14);
  model.set_num_attention_heads(32);
  model.set_num_key_value_heads(32);
  model.set_intermediate_size(5632);
  return hf;
}

}  // namespace cadre::bench
