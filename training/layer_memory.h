// What a layer keeps of one microbatch for its backward pass on one rank, counted from shapes: the
// tensors that its ops save. Pure functions, callable from any thread.
#pragma once

#include <cstdint>

#include "model/decoder_spec.h"
#include "parallel/layout.h"

namespace cadre {

// A microbatch as one rank sees it.
struct RankTokens {
  int64_t all = 0;  // that its heads and columns compute
  int64_t own = 0;  // that it keeps between tensor-parallel regions
};
// `tokens`: of the whole microbatch.
RankTokens TokensOfRank(const Layout& layout, int64_t tokens);

// Elements in compute dtype.
int64_t SavedElements(const DecoderSpec& spec, const LayerSpec& layer, const Layout& layout,
                      const RankTokens& tokens);

}  // namespace cadre
