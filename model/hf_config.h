// config.json and generation_config.json of a Hugging Face folder <-> ModelConfig.
//
// Keys that ModelConfig has become its fields; the whole file is kept and written back with those
// fields in place. A null is an absent key. What transformers' own classes assume for a key that is
// absent altogether, and ModelConfig does not, is filled in. `rope_parameters` (newer files) is
// folded into rope_theta and rope_scaling, and both are written. Token ids of
// generation_config.json override config.json's.
//
// A ladder model (`residual`) is written with the model_type ladder_llama and so on, which other
// programs refuse: they would run its weights with the standard wiring.
//
// Callable from any thread. Files are taken as hostile: at most 16 MiB, 64 levels.
#pragma once

#include <string>
#include <string_view>

#include "core/status.h"
#include "proto/model_config.pb.h"

namespace cadre {

struct HfConfig {
  config::ModelConfig model;
  std::string source = "{}";  // config.json as it was read: keys without a field survive in it
  std::string generation;     // generation_config.json as it was; empty where there is none
};

// kInvalidArgument names `file`, the key, its value and what is allowed; ResolveModelConfig's check
// is included.
absl::StatusOr<HfConfig> ParseHfConfig(std::string_view json, const std::string& file);

// Of a folder with config.json, of that file itself, or of a GGUF file. kNotFound: there is none.
absl::StatusOr<HfConfig> LoadHfConfig(const std::string& path);

// config.json for `config` with weights of this torch dtype name ("bfloat16"): opens in
// transformers, but for a ladder model.
std::string HfConfigJson(const HfConfig& config, const std::string& torch_dtype);

// generation_config.json: the one that was read, or a fresh one with the token ids.
std::string GenerationConfigJson(const HfConfig& config);

}  // namespace cadre
