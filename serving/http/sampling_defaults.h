// What a model's folder says about sampling. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"

namespace cadre {

class Tokenizer;

// What requests leave open, from the model's generation_config.json.
struct SamplingDefaults {
  float temperature = 1;
  int top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  int max_new_tokens = 0;  // of answers that are not bounded by their request; 0: no bound
  std::vector<int32_t> eos_token_ids;  // that the folder names, ascending; see EndTokenIds
};

// Reads generation_config.json and, where that names no end of sequence, config.json, of a model's
// folder. Absent files leave the defaults. kInvalidArgument: a value that is not allowed.
absl::StatusOr<SamplingDefaults> LoadSamplingDefaults(const std::string& model_dir);

// Every id that ends a sequence, ascending: the folder's, or the tokenizer's (null: none) where the
// folder names none. What `cadre serve` and `cadre generate` both stop at.
std::vector<int32_t> EndTokenIds(const SamplingDefaults& defaults, const Tokenizer* tokenizer);

}  // namespace cadre
