// How many layers each pipeline stage holds.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/status.h"

namespace cadre {

// As even as it goes: the dearest stage costs as little as it can with whole layers, at least one
// in each stage. A layer costs 1, the first stage also `embedding_layers`, the last also
// `head_layers`. Where stages are equal the later one gets the layer more: in most schedules the
// earlier ones hold more microbatches. 1 <= stages <= layers.
std::vector<int> EvenSplit(int layers, int stages, double embedding_layers, double head_layers);

// A split that was given: one number a stage, of which the first may be 0 (the embedding alone) and
// the last (the head alone), together all layers. kInvalidArgument otherwise.
absl::Status CheckSplit(std::span<const int> split, int layers, int stages);

}  // namespace cadre
