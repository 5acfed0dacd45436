// ModelPart: which part of every weight a rank holds. Blocks cut their parameters by it; the groups
// that put results together again come with the context (groups.h).
#pragma once

#include "core/parameters.h"

namespace cadre {

struct ModelPart {
  int tp = 1, tp_rank = 0;    // heads, intermediate columns, vocabulary
  int ep = 1, ep_rank = 0;    // experts
  int etp = 1, etp_rank = 0;  // columns inside an expert
  // Between blocks a tensor-parallel rank has its run of the tokens; else each has all of them.
  bool sequence_parallel = true;

  bool whole() const { return tp * ep * etp == 1; }
  bool replicated_tokens() const { return tp > 1 && !sequence_parallel; }

  // This rank's run of n rows or columns that the tensor-parallel group shares; tp divides n.
  ParamBlock Rows(int64_t n) const { return {.row_begin = n / tp * tp_rank, .rows = n / tp}; }
  ParamBlock Columns(int64_t n) const {
    return {.column_begin = n / tp * tp_rank, .columns = n / tp};
  }
};

}  // namespace cadre
