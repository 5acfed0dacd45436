// The rotary part of a ModelConfig: which of default, linear, llama3 and yarn, with what numbers.
// Callable from any thread.
#pragma once

#include "core/status.h"
#include "model/decoder_spec.h"

namespace cadre {

// dim: rotated dimensions of a head.
absl::StatusOr<ops::RopeParams> ResolveRope(const config::ModelConfig& config,
                                            const Architecture& arch, int64_t dim);

// DeepSeek's factor on the attention logits: (0.1 mscale_all_dim ln(factor) + 1)^2 under a
// stretched rotation, else 1.
double LatentLogitScale(const config::ModelConfig& config);

}  // namespace cadre
