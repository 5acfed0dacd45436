#include "core/tape.h"

#include <utility>

#include "core/trace.h"

namespace cadre {
namespace {

bool Includes(Pass pass, Pass part) {
  return (static_cast<uint8_t>(pass) & static_cast<uint8_t>(part)) != 0;
}

}  // namespace

SlotId Tape::NewSlot() {
  slots_.emplace_back();
  return static_cast<SlotId>(slots_.size()) - 1;
}

void Tape::Record(Node node) {
  for (Saved& saved : node.saved) {
    bool input = Includes(saved.pass, Pass::kInput) && node.input_grad;
    bool weight = Includes(saved.pass, Pass::kWeight) && node.weight_grad;
    Slot& slot = slots_[saved.slot];
    slot.uses += int{input} + int{weight};
    if (slot.uses > 0 && !slot.value.defined()) slot.value = saved.value;
    saved.value = Tensor();
  }
  for (SlotId output : node.outputs) {
    Slot& slot = slots_[output];
    slot.wanted = true;
    slot.grad_uses += int{node.input_grad != nullptr} +
                      int{node.weight_grad != nullptr && node.weight_reads_output_grad};
  }
  runs_[recording_].push_back(std::move(node));
}

int Tape::ReservePlace() {
  CADRE_CHECK(recording_ + 1 == runs_.size(), "a place inside a place");
  const size_t place = runs_.size();
  runs_.resize(place + 2);
  recording_ = place + 1;
  return static_cast<int>(place);
}

void Tape::Defer(SlotId slot, Source source) {
  slots_[slot].value = Tensor();
  slots_[slot].source = std::move(source);
}

void Tape::Seed(SlotId slot, Tensor gradient) { slots_[slot].grad = std::move(gradient); }

void Tape::SeedDeferred(SlotId slot, Source source) {
  slots_[slot].grad_sources.push_back(std::move(source));
}

void Tape::KeepGrad(SlotId slot) {
  slots_[slot].wanted = true;
  ++slots_[slot].grad_uses;
}

Tensor Tape::Grad(Context& ctx, SlotId slot) { return ReadGrad(ctx, slot); }

Tensor Tape::TakeGrad(Context& ctx, SlotId slot) {
  Tensor grad = ReadGrad(ctx, slot);
  if (--slots_[slot].grad_uses == 0) slots_[slot].grad = Tensor();
  return grad;
}

bool Tape::HasOutputGrad(const Node& node) const {
  for (SlotId output : node.outputs) {
    if (slots_[output].grad.defined() || !slots_[output].grad_sources.empty()) return true;
  }
  return false;
}

void Tape::RunInput(Context& ctx, Node& node) {
  if (!node.input_grad) return;
  if (HasOutputGrad(node)) {
    TraceScope scope(ctx.trace, node.name, {{"gradient", "input"}});
    GradContext grad(ctx, *this, Lease::kInputGrad);
    node.input_grad(grad);
  }
  Finish(node, Pass::kInput);
  node.input_grad = nullptr;
}

void Tape::RunWeight(Context& ctx, Node& node) {
  if (node.weight_grad) {
    if (!node.weight_reads_output_grad || HasOutputGrad(node)) {
      TraceScope scope(ctx.trace, node.name, {{"gradient", "weight"}});
      GradContext grad(ctx, *this, Lease::kWeightGrad);
      node.weight_grad(grad);
    }
    Finish(node, Pass::kWeight);
    node.weight_grad = nullptr;
  }
  for (ParamId param : node.params) ctx.parameters->GradientAdded(param);
  node.params.clear();
}

void Tape::Finish(Node& node, Pass pass) {
  for (const Saved& saved : node.saved) {
    if (!Includes(saved.pass, pass)) continue;
    Slot& slot = slots_[saved.slot];
    if (--slot.uses == 0) {
      slot.value = Tensor();
      slot.source = nullptr;
    }
  }
  if (pass == Pass::kWeight && !node.weight_reads_output_grad) return;
  for (SlotId output : node.outputs) {
    Slot& slot = slots_[output];
    if (--slot.grad_uses == 0) {
      slot.grad = Tensor();
      slot.grad_sources.clear();
    }
  }
}

template <typename Run>
void Tape::LastFirst(Run&& run) {
  for (auto nodes = runs_.rbegin(); nodes != runs_.rend(); ++nodes) {
    for (auto node = nodes->rbegin(); node != nodes->rend(); ++node) run(*node);
  }
}

void Tape::Clear() {
  runs_.assign(1, {});
  recording_ = 0;
}

void Tape::Backward(Context& ctx) {
  LastFirst([&](Node& node) {
    RunInput(ctx, node);
    RunWeight(ctx, node);
  });
  Clear();
}

void Tape::BackwardInputs(Context& ctx) {
  LastFirst([&](Node& node) { RunInput(ctx, node); });
}

void Tape::BackwardWeights(Context& ctx) {
  LastFirst([&](Node& node) { RunWeight(ctx, node); });
  Clear();
}

Tensor Tape::ReadValue(Context& ctx, SlotId id) {
  if (!slots_[id].value.defined() && slots_[id].source) {
    // A source that recomputes may make new slots, which moves the old ones.
    Source source = std::move(slots_[id].source);
    slots_[id].source = nullptr;
    Tensor value = source(ctx);
    slots_[id].value = std::move(value);
  }
  CADRE_CHECK(slots_[id].value.defined(), "slot {} was read but not saved", id);
  return slots_[id].value;
}

Tensor Tape::ReadGrad(Context& ctx, SlotId id) {
  // A source that recomputes may make new slots, which moves the old ones.
  const std::vector<Source> sources = std::exchange(slots_[id].grad_sources, {});
  for (const Source& source : sources) AddGrad(ctx, id, source(ctx));
  return slots_[id].grad;
}

void Tape::AddGrad(Context& ctx, SlotId id, Tensor grad) {
  Slot& slot = slots_[id];
  if (slot.grad.defined()) {
    CADRE_CHECK(slot.grad.numel() == grad.numel() && slot.grad.dtype() == grad.dtype(),
                "gradient {} added to {}", grad.shape().ToString(), slot.grad.shape().ToString());
    accumulate_(ctx, slot.grad, grad);
  } else {
    slot.grad = std::move(grad);
  }
}

size_t Tape::saved_bytes() const {
  size_t bytes = 0;
  for (const Slot& slot : slots_) {
    if (slot.value.defined()) bytes += slot.value.bytes();
  }
  return bytes;
}

}  // namespace cadre
