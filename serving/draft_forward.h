// One step of a drafting model, which may be the first layers of the model itself: reads tokens of
// sequences, writes their keys and values, draws the next token of each.
//
// Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/context.h"
#include "memory/kv_cache.h"
#include "model/decoder.h"
#include "serving/sequence.h"
#include "serving/step_plan.h"

namespace cadre {

struct DraftModel {
  Context& ctx;
  const Decoder& decoder;
  int layers;  // the first ones; behind them the final norm and the head
  KvCache& cache;
};

// The token after the last of each `reads` (one per sequence), drawn as the sequence draws.
std::vector<int32_t> DrawDrafts(const DraftModel& model, Allocator& allocator,
                                std::span<const PlannedTokens> reads,
                                std::span<const Sequence* const> sequences);

}  // namespace cadre
