// Tape: the autograd record of one (stage, microbatch).
//
// An op computes its result and, where the context has a tape, records a Node: which slots it reads
// gradients from (outputs), which it adds gradients to (inputs), what its closures will need
// (saved) and two closures, the gradient of its inputs and the gradient of its weights. A schedule
// may run the second later than the first. Closures hold slot and parameter ids, never tensors; so
// the tape can free, offload or recompute what lies in a slot.
//
//   Var Scale(Context& ctx, const Var& x, float factor) {
//     Var y{Compute(ctx, x.value, factor)};
//     if (ctx.tape == nullptr) return y;
//     y.slot = ctx.tape->NewSlot();
//     ctx.tape->Record({.name = "scale", .inputs = {x.slot}, .outputs = {y.slot},
//                       .input_grad = [x = x.slot, y = y.slot, factor](GradContext& g) {
//                         g.AddGrad(x, Compute(g.ctx(), g.OutputGrad(y), factor)); }});
//     return y;
//   }
//
// Gradients are shape-agnostic (compared by element count), so a reshaped Var keeps its slot.
// A tape is used by one thread, and for one backward pass.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "core/context.h"
#include "core/parameters.h"
#include "core/tensor.h"

namespace cadre {

using SlotId = int32_t;
inline constexpr SlotId kNoSlot = -1;

// A value that flows between ops: its tensor and, where it was recorded, its slot. A Var without a
// slot is a constant: no gradient flows to it.
struct Var {
  Tensor value;
  SlotId slot = kNoSlot;

  Var Reshape(const Shape& shape) const { return {value.Reshape(shape), slot}; }
};

class GradContext;

// Which closures of a node read a saved slot.
enum class Pass : uint8_t { kInput = 1, kWeight = 2, kBoth = 3 };

struct Saved {
  SlotId slot = kNoSlot;
  Tensor value;
  Pass pass = Pass::kBoth;
};

struct Node {
  const char* name = "";
  std::vector<SlotId> inputs;  // kNoSlot entries are allowed and skipped
  std::vector<SlotId> outputs;
  std::vector<Saved> saved;
  std::vector<ParamId> params;  // that weight_grad adds to; each reports when it has run
  std::function<void(GradContext&)> input_grad;   // may be empty
  std::function<void(GradContext&)> weight_grad;  // may be empty
  bool weight_reads_output_grad = true;  // whether weight_grad reads the outputs' gradients
};

class Tape {
 public:
  // into += add, elementwise, same dtype and element count; where into's storage is shared, into
  // becomes a fresh tensor instead. Injected, since ops lie above core.
  using Accumulate = void (*)(Context& ctx, Tensor& into, const Tensor& add);
  // Produces a slot's tensor at its first read: awaits a Work, fetches from a tier, or recomputes.
  using Source = std::function<Tensor(Context&)>;

  explicit Tape(Accumulate accumulate) : accumulate_(accumulate) {}

  SlotId NewSlot();
  // The slot under which a Var can be saved: its own, or a new one for a constant.
  SlotId SlotToSave(const Var& var) { return var.slot == kNoSlot ? NewSlot() : var.slot; }
  void Record(Node node);

  // A place in the order of the nodes for what the forward pass computes later than the backward
  // pass would like: what reads it, or is computed meanwhile, is recorded after the place.
  int ReservePlace();
  // While one lives, nodes go into a reserved place, after those that are there.
  class Filling {
   public:
    Filling(Tape& tape, int place)
        : tape_(tape), before_(std::exchange(tape.recording_, static_cast<size_t>(place))) {}
    ~Filling() { tape_.recording_ = before_; }
    Filling(const Filling&) = delete;
    Filling& operator=(const Filling&) = delete;

   private:
    Tape& tape_;
    const size_t before_;
  };

  // Replaces what a saved slot holds by something that produces it when first read.
  void Defer(SlotId slot, Source source);

  // Starts the backward pass: the gradient of `slot` (a loss) is `gradient`.
  void Seed(SlotId slot, Tensor gradient);
  // Adds a gradient that is still on its way: awaited at the first read, then added after all that
  // had arrived, in the order of these calls.
  void SeedDeferred(SlotId slot, Source source);

  // Both closures of every node, last node first; frees everything on the way.
  void Backward(Context& ctx);
  // The two halves, for schedules that delay weight gradients. BackwardWeights needs BackwardInputs
  // to have run. The first frees what the second does not need.
  void BackwardInputs(Context& ctx);
  void BackwardWeights(Context& ctx);

  // The gradient of a slot after the pass, undefined if none arrived; keep it with KeepGrad first.
  void KeepGrad(SlotId slot);
  Tensor Grad(Context& ctx, SlotId slot);
  // The same, and the tape keeps it no longer.
  Tensor TakeGrad(Context& ctx, SlotId slot);

  // Bytes of saved values that are resident.
  size_t saved_bytes() const;

 private:
  friend class GradContext;

  struct Slot {
    Tensor value;
    Source source;
    int uses = 0;  // closures that still read the value
    Tensor grad;
    std::vector<Source> grad_sources;
    int grad_uses = 0;    // closures that still read the gradient
    bool wanted = false;  // some node has it as an output, or it was kept
  };

  void RunInput(Context& ctx, Node& node);
  void RunWeight(Context& ctx, Node& node);
  bool HasOutputGrad(const Node& node) const;
  void Finish(Node& node, Pass pass);
  Tensor ReadValue(Context& ctx, SlotId slot);
  Tensor ReadGrad(Context& ctx, SlotId slot);
  void AddGrad(Context& ctx, SlotId slot, Tensor grad);
  template <typename Run>
  void LastFirst(Run&& run);
  void Clear();

  Accumulate accumulate_;
  std::vector<Slot> slots_;
  // In the order of places: run by run, a reserved place is a run of its own.
  std::vector<std::vector<Node>> runs_{1};
  size_t recording_ = 0;  // the run that nodes go into
};

// What a closure sees.
class GradContext {
 public:
  GradContext(Context& ctx, Tape& tape, Lease lease) : ctx_(ctx), tape_(tape), lease_(lease) {}

  Context& ctx() { return ctx_; }
  Tensor Read(SlotId slot) { return tape_.ReadValue(ctx_, slot); }
  // The complete gradient of an output; undefined where nothing flowed into it.
  Tensor OutputGrad(SlotId slot) { return tape_.ReadGrad(ctx_, slot); }
  // Whether a gradient is wanted for an input.
  bool Needs(SlotId slot) const { return slot != kNoSlot && tape_.slots_[slot].wanted; }
  // Adds to an input's gradient. The tensor may be shared (one gradient handed to two inputs).
  void AddGrad(SlotId slot, Tensor grad) {
    if (Needs(slot)) tape_.AddGrad(ctx_, slot, std::move(grad));
  }
  // Adds what `source` will give: it is asked when the gradient is first read.
  void AddGradDeferred(SlotId slot, Tape::Source source) {
    if (Needs(slot)) tape_.SeedDeferred(slot, std::move(source));
  }

  Lease lease() const { return lease_; }

 private:
  Context& ctx_;
  Tape& tape_;
  Lease lease_;
};

// A weight held for as long as this lives.
class LeasedWeight {
 public:
  LeasedWeight(Context& ctx, ParamId id, Lease lease)
      : store_(*ctx.parameters), id_(id), lease_(lease), tensor_(store_.Acquire(id, lease)) {}
  ~LeasedWeight() { store_.Release(id_, lease_); }
  LeasedWeight(const LeasedWeight&) = delete;
  LeasedWeight& operator=(const LeasedWeight&) = delete;

  const Tensor& tensor() const { return tensor_; }

 private:
  ParameterStore& store_;
  ParamId id_;
  Lease lease_;
  Tensor tensor_;
};

}  // namespace cadre
