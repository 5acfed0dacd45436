// ModelPart: which part of a model a rank holds: layers by pipeline stage, and of every weight a
// block. Blocks cut their parameters by it; the groups that put results together again come with
// the context (groups.h).
#pragma once

#include <algorithm>
#include <vector>

#include "core/parameters.h"

namespace cadre {

struct LayerRange {
  int begin = 0, end = 0;
};

struct ModelPart {
  int tp = 1, tp_rank = 0;    // heads, intermediate columns, vocabulary
  int ep = 1, ep_rank = 0;    // experts
  int etp = 1, etp_rank = 0;  // columns inside an expert
  // Between blocks a tensor-parallel rank has its run of the tokens; else each has all of them.
  bool sequence_parallel = true;

  // Layers of each pipeline stage. The first stage has the embedding, too, the last one the final
  // norm and the output head. Empty: one stage.
  std::vector<int> stage_layers = {};
  std::vector<int> stages = {0};  // that this rank holds, rising

  int stage_count() const { return std::max(1, static_cast<int>(stage_layers.size())); }
  bool holds_stage(int stage) const { return std::ranges::find(stages, stage) != stages.end(); }
  bool first() const { return holds_stage(0); }
  bool last() const { return holds_stage(stage_count() - 1); }
  LayerRange LayersOf(int stage, int num_layers) const {
    if (stage_layers.empty()) return {0, num_layers};
    LayerRange range;
    for (int s = 0; s < stage; ++s) range.begin += stage_layers[static_cast<size_t>(s)];
    range.end = range.begin + stage_layers[static_cast<size_t>(stage)];
    return range;
  }

  bool replicated_tokens() const { return tp > 1 && !sequence_parallel; }
  bool whole() const {
    return tp * ep * etp == 1 && static_cast<int>(stages.size()) == stage_count();
  }

  // This rank's run of n rows or columns that the tensor-parallel group shares; tp divides n.
  ParamBlock Rows(int64_t n) const { return {.row_begin = n / tp * tp_rank, .rows = n / tp}; }
  ParamBlock Columns(int64_t n) const {
    return {.column_begin = n / tp * tp_rank, .columns = n / tp};
  }
};

}  // namespace cadre
