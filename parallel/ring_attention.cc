#include "parallel/ring_attention.h"

#include <cmath>
#include <limits>

#include "core/ops/attention.h"
#include "core/ops/elementwise.h"
#include "core/parallel_for.h"

namespace cadre {
namespace {

DType SumDType(const Tensor& x) { return x.dtype() == DType::kF64 ? DType::kF64 : DType::kF32; }

// Tensors on their way to the next rank, and those of the rank before.
class Handover {
 public:
  Handover() = default;
  Handover(Context& ctx, const RingAttentionArgs& args, const std::vector<Tensor>& mine) {
    Communicator& group = *args.group;
    const int n = group.size(), next = (group.rank() + 1) % n, before = (group.rank() + n - 1) % n;
    for (const Tensor& x : mine) {
      theirs_.push_back(ctx.Empty(x.shape(), x.dtype()));
      works_.push_back(group.Send(x, next, args.label));
      works_.push_back(group.Receive(theirs_.back(), before, args.label));
    }
  }

  std::vector<Tensor> Wait(Context& ctx, const RingAttentionArgs& args) {
    bool landed = true;
    for (const WorkPtr& work : works_) landed &= Landed(ctx, *work, args.label);
    if (!landed) {
      for (Tensor& x : theirs_) x = ctx.Zeros(x.shape(), x.dtype());
    }
    return std::move(theirs_);
  }

 private:
  std::vector<Tensor> theirs_;
  std::vector<WorkPtr> works_;
};

// Whose keys a rank has at a step.
int OwnerAt(const Communicator& group, int step) {
  return (group.rank() - step + group.size()) % group.size();
}

// out [T, H, dv] and lse [T, H], both in SumDType, become those of the keys so far and the part's.
// A reference (f64) has natural logarithms, the kernels those to base two.
template <typename S, typename T>
void Fold(Context& ctx, const ops::AttentionPart& part, const Tensor& out, const Tensor& lse) {
  constexpr S kNone = std::numeric_limits<S>::infinity();
  const auto power = [](S x) { return sizeof(S) == 8 ? std::exp(x) : std::exp2(x); };
  const int64_t width = out.dim(2);
  ParallelFor(ctx, lse.numel(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      S& all = lse.data<S>()[r];
      const S some = part.lse.data<S>()[r];
      if (some == kNone) continue;
      const S most = all == kNone ? some : std::max(all, some);
      const S before = all == kNone ? S{0} : power(all - most), added = power(some - most);
      const S total = before + added;
      all = most + (sizeof(S) == 8 ? std::log(total) : std::log2(total));
      S* to = out.data<S>() + r * width;
      const T* from = part.out.data<T>() + r * width;
      for (int64_t d = 0; d < width; ++d) {
        to[d] = (to[d] * before + static_cast<S>(from[d]) * added) / total;
      }
    }
  });
}

void FoldAny(Context& ctx, const ops::AttentionPart& part, const Tensor& out, const Tensor& lse) {
  VisitFloat(part.out.dtype(), [&](auto t) {
    using T = decltype(t);
    Fold<std::conditional_t<std::is_same_v<T, double>, double, float>, T>(ctx, part, out, lse);
  });
}

void AddTo(Context& ctx, const Tensor& sum, const Tensor& x) {
  VisitFloat(x.dtype(), [&](auto t) {
    using T = decltype(t);
    using S = std::conditional_t<std::is_same_v<T, double>, double, float>;
    ParallelFor(ctx, x.numel(), 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        sum.data<S>()[i] += static_cast<S>(x.data<T>()[i]);
      }
    });
  });
}

Tensor Converted(Context& ctx, const Tensor& x, DType dtype) {
  Tensor y = ctx.Empty(x.shape(), dtype);
  ops::ConvertInto(ctx, x, y);
  return y;
}

struct Attended {
  Tensor out, lse;
};

Attended GoAround(Context& ctx, const Tensor& q, Tensor k, Tensor v,
                  const RingAttentionArgs& args) {
  const Communicator& group = *args.group;
  const RingShares& shares = *args.shares;
  const auto mine = static_cast<size_t>(group.rank());
  const Tensor out = ctx.Zeros({q.dim(0), q.dim(1), v.dim(2)}, SumDType(q));
  const Tensor lse = ctx.Empty({q.dim(0), q.dim(1)}, SumDType(q));
  VisitFloat(lse.dtype(), [&](auto t) {
    using S = decltype(t);
    std::fill_n(lse.data<S>(), lse.numel(), static_cast<S>(INFINITY));
  });
  for (int step = 0; step < group.size(); ++step) {
    const auto owner = static_cast<size_t>(OwnerAt(group, step));
    const bool last = step + 1 == group.size();
    Handover keys = last ? Handover() : Handover(ctx, args, {k, v});
    const ops::AttentionPart part =
        ops::AttendToPart(ctx, {.q = q,
                                .k = k,
                                .v = v,
                                .scale = args.scale,
                                .window = args.sliding_window,
                                .offsets = shares.offsets[owner],
                                .query_offsets = shares.offsets[mine],
                                .key_positions = shares.positions[owner],
                                .query_positions = shares.positions[mine]});
    FoldAny(ctx, part, out, lse);
    if (last) break;
    std::vector<Tensor> next = keys.Wait(ctx, args);
    k = next[0];
    v = next[1];
  }
  return {Converted(ctx, out, q.dtype()), lse};
}

// What goes into the gradients besides the keys in hand.
struct BackwardInputs {
  Tensor q, k, v, out, lse, dout;
};

ops::AttentionGradArgs GradOfPart(Context& ctx, const BackwardInputs& saved, const Tensor& k,
                                  const Tensor& v, int owner, const RingAttentionArgs& args) {
  const RingShares& shares = *args.shares;
  const auto mine = static_cast<size_t>(args.group->rank()), other = static_cast<size_t>(owner);
  const ops::AttentionGradArgs grad{.q = saved.q,
                                    .k = k,
                                    .v = v,
                                    .out = saved.out,
                                    .lse = saved.lse,
                                    .dout = saved.dout,
                                    .scale = args.scale,
                                    .window = args.sliding_window,
                                    .offsets = shares.offsets[other],
                                    .query_offsets = shares.offsets[mine],
                                    .query_positions = shares.positions[mine],
                                    .key_positions = shares.positions[other],
                                    .dq = ctx.Empty(saved.q.shape(), saved.q.dtype()),
                                    .dk = ctx.Empty(k.shape(), k.dtype()),
                                    .dv = ctx.Empty(v.shape(), v.dtype())};
  ops::AttentionPartGrad(ctx, grad);
  return grad;
}

struct Gradients {
  Tensor dq, dk, dv;
};

// A rank's sums follow the keys that they belong to: to the next rank, which has these keys at the
// next step, and after the last step home.
Gradients GoAroundBack(Context& ctx, const BackwardInputs& saved, const RingAttentionArgs& args) {
  const Communicator& group = *args.group;
  const DType sum = SumDType(saved.q);
  Tensor k = saved.k, v = saved.v;
  const Tensor dq = ctx.Zeros(saved.q.shape(), sum);
  std::vector<Tensor> sums = {ctx.Zeros(k.shape(), sum), ctx.Zeros(v.shape(), sum)};
  Handover grads;
  for (int step = 0; step < group.size(); ++step) {
    const bool last = step + 1 == group.size();
    Handover keys = last ? Handover() : Handover(ctx, args, {k, v});
    const ops::AttentionGradArgs part = GradOfPart(ctx, saved, k, v, OwnerAt(group, step), args);
    AddTo(ctx, dq, part.dq);
    if (step > 0) sums = grads.Wait(ctx, args);
    AddTo(ctx, sums[0], part.dk);
    AddTo(ctx, sums[1], part.dv);
    grads = Handover(ctx, args, sums);
    if (last) break;
    std::vector<Tensor> next = keys.Wait(ctx, args);
    k = next[0];
    v = next[1];
  }
  sums = grads.Wait(ctx, args);
  const DType dtype = saved.q.dtype();
  return {Converted(ctx, dq, dtype), Converted(ctx, sums[0], dtype),
          Converted(ctx, sums[1], dtype)};
}

}  // namespace

Var RingAttention(Context& ctx, const Var& q, const Var& k, const Var& v,
                  const RingAttentionArgs& args) {
  CADRE_CHECK(GroupSize(args.group) > 1 &&
                  static_cast<int>(args.shares->offsets.size()) == args.group->size() &&
                  static_cast<int>(args.shares->positions.size()) == args.group->size(),
              "shares of {} ranks for {}", args.shares->offsets.size(), GroupSize(args.group));
  const Attended attended = GoAround(ctx, q.value, k.value, v.value, args);
  Var out{attended.out};
  if (ctx.tape == nullptr) return out;
  Tape& tape = *ctx.tape;
  out.slot = tape.NewSlot();
  const SlotId slots[] = {tape.SlotToSave(q), tape.SlotToSave(k), tape.SlotToSave(v),
                          tape.NewSlot()};
  Node node{.name = "ring_attention",
            .inputs = {q.slot, k.slot, v.slot},
            .outputs = {out.slot},
            .saved = {{slots[0], q.value, Pass::kInput},
                      {slots[1], k.value, Pass::kInput},
                      {slots[2], v.value, Pass::kInput},
                      {out.slot, out.value, Pass::kInput},
                      {slots[3], attended.lse, Pass::kInput}}};
  node.input_grad = [args, qs = q.slot, ks = k.slot, vs = v.slot, os = out.slot, sq = slots[0],
                     sk = slots[1], sv = slots[2], sl = slots[3]](GradContext& g) {
    BackwardInputs saved{g.Read(sq), g.Read(sk), g.Read(sv),
                         g.Read(os), g.Read(sl), g.OutputGrad(os)};
    saved.dout = saved.dout.Reshape(saved.out.shape());
    const Gradients gradients = GoAroundBack(g.ctx(), saved, args);
    g.AddGrad(qs, gradients.dq);
    g.AddGrad(ks, gradients.dk);
    g.AddGrad(vs, gradients.dv);
  };
  tape.Record(std::move(node));
  return out;
}

}  // namespace cadre
