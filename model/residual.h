// ResidualStream: the stream that a decoder's modules, attention and feed-forward in turn, read and
// add to.
//
// Standard wiring: a module's output h lands before the next module reads,
//   x_i = x_{i-1} + h_i(norm(x_{i-1})).
// Ladder (Zhang et al., "Ladder-Residual: Parallelism-Aware Architecture for Accelerating Large
// Model Inference with Communication Overlapping", 2025): a module reads the stream as it stood
// before the output of the module in front of it landed,
//   x_i = x_{i-1} + h_i(norm(x_{i-2})),
// so that the sum of an output over tensor-parallel ranks runs beside a whole module. Layers of
// both kinds may follow one another: a standard layer reads the stream with everything landed, and
// what a run of ladder layers begins with, be it the embedding or a standard layer's end, both
// modules of its first layer read. All lands before the last norm.
//
// In the backward pass too a sum has one module's time: the sum of the gradient of what module i +
// 1 read is awaited after the backward pass of module i. The tape would await it at once, so
// landings and norms are recorded in a place in front of the module that they overlap with.
//
// Used by one thread, for one forward pass; without a tape the same, with no record.
#pragma once

#include <deque>
#include <vector>

#include "core/ops/rms_norm.h"
#include "core/tape.h"
#include "model/decoder_spec.h"
#include "parallel/token_ops.h"

namespace cadre {

class ResidualStream {
 public:
  explicit ResidualStream(const Var& x) : landed_(x) {}

  // What a module of that wiring reads, [tokens, D]. Modules alternate Read and Add.
  Var Read(Context& ctx, Wiring wiring, const ops::RmsNormArgs& norm);
  // That module's output.
  void Add(Context& ctx, Wiring wiring, PendingOutput output);
  // The stream with everything landed.
  Var Land(Context& ctx);

  // For the boundary of two pipeline stages: the stream as the next module reads it and, where the
  // module before was a ladder module, its output, which has come but not landed. The stage after
  // goes on from them with the same bits.
  std::vector<Var> Leave(Context& ctx);
  static ResidualStream Enter(const std::vector<Var>& left);

 private:
  void LandOldest(Context& ctx);

  Var landed_;
  std::deque<PendingOutput> pending_;  // of ladder modules, oldest first; at most two
  int place_ = -1;                     // on the tape, before the module that `pending_` ends with
};

}  // namespace cadre
