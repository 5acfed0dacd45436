// What a GGUF file says about a model, in the terms of a Hugging Face folder: config, tokenizer,
// tensors. Architectures: llama (with experts: mixtral), qwen2, qwen3, qwen3moe; others are refused
// by name. Pure functions; any thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/gguf.h"
#include "model/hf_config.h"
#include "model/model.h"
#include "model/tokenizer.h"

namespace cadre {

// kUnimplemented names an architecture or a feature that is not read; kInvalidArgument and
// kNotFound the key.
absl::StatusOr<HfConfig> GgufConfig(const GgufFile& file);

// tokenizer.json and tokenizer_config.json of its vocabulary: byte-level BPE ("gpt2", with the
// pre-tokenizers llama-bpe, qwen2 and gpt-2) or SentencePiece's ("llama"), whose merges are made
// from the scores.
struct GgufTokenizerFiles {
  std::string tokenizer, config;
};
absl::StatusOr<GgufTokenizerFiles> GgufTokenizer(const GgufFile& file);

// The chat template, empty where there is none, and the special tokens' names as a JSON object.
struct GgufChat {
  std::string source, special_tokens;
};
absl::StatusOr<GgufChat> GgufChatOf(const GgufFile& file);

// Ids that end a sequence: eos and end-of-turn.
absl::StatusOr<std::vector<int32_t>> LoadGgufEndIds(const std::string& path);

// Config and weights. Tensors of Q8_0, Q4_0, Q4_K and Q6_K stay integers (core/quantized.h): codes
// as they are; Q4_K's and Q6_K's two levels of scales become one in f16, rounded. What mixes them
// with floats in one parameter, and every norm and gate, is converted to options.dtype.
// options.weights quantizes files of floats; kInvalidArgument where the file is quantized already,
// or for a part of a model.
absl::StatusOr<std::unique_ptr<Model>> LoadGgufModel(const Context& ctx, const std::string& path,
                                                     const ModelOptions& options);

}  // namespace cadre
