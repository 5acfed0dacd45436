// Traces of real services: when requests came, how long prompt and answer were, and, where the
// trace says so, which prompts begin alike. What a file says is checked before it is believed; a
// line that cannot be read is kInvalidArgument with the file, the line and what is wrong with it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre::bench {

struct TraceRequest {
  double at = 0;  // seconds after the trace's first request
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  // Ids of the prompt's blocks of Trace::block_tokens, the last one cut short; empty where the
  // trace knows none. Equal ids hold equal tokens.
  std::vector<int64_t> blocks;
};

struct Trace {
  std::vector<TraceRequest> requests;  // in the order of their times
  int64_t block_tokens = 0;            // 0: no blocks
};

// The Azure Public Dataset's LLM inference trace: TIMESTAMP,ContextTokens,GeneratedTokens.
absl::StatusOr<Trace> ParseAzureTrace(std::string_view text, const std::string& name);

// Mooncake's (FAST 2025): a JSON object a line with timestamp (ms), input_length, output_length and
// hash_ids of blocks of 512 tokens.
absl::StatusOr<Trace> ParseMooncakeTrace(std::string_view text, const std::string& name);

// By the file's name: .csv is Azure's, .jsonl Mooncake's.
absl::StatusOr<Trace> LoadTrace(const std::string& path);

}  // namespace cadre::bench
