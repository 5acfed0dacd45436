#include <algorithm>
#include <numeric>

#include "moe/dispatcher.h"

namespace cadre::moe {
namespace {

// What travels: rows to and from each rank, and how many of each expert came from each.
struct Traffic {
  RowCounts rows;
  Tensor received;  // i32 [ranks, experts of this rank]
};

Traffic CountTraffic(Context& ctx, const std::vector<int32_t>& offsets, int ranks,
                     const OpLabel& label) {
  const int64_t own = (static_cast<int64_t>(offsets.size()) - 1) / ranks;
  Tensor counts = ctx.Empty({ranks, own}, DType::kI32);
  for (int64_t e = 0; e < counts.numel(); ++e) {
    counts.data<int32_t>()[e] =
        offsets[static_cast<size_t>(e) + 1] - offsets[static_cast<size_t>(e)];
  }
  // Ranks have equally many tokens, so nobody sends more rows than this one has.
  Traffic traffic;
  traffic.received = ExchangeCounts(ctx, counts, offsets.back(), ctx.groups->ep, label);
  for (int r = 0; r < ranks; ++r) {
    const int32_t* sent = counts.data<int32_t>() + r * own;
    const int32_t* came = traffic.received.data<int32_t>() + r * own;
    traffic.rows.send.push_back(std::accumulate(sent, sent + own, int64_t{0}));
    traffic.rows.receive.push_back(std::accumulate(came, came + own, int64_t{0}));
  }
  return traffic;
}

// The expert of each row that arrives: by rank, and by expert within one.
Tensor ArrivingExperts(Context& ctx, const Tensor& received, int64_t rows) {
  Tensor ids = ctx.Empty({rows, 1}, DType::kI32);
  int32_t* next = ids.data<int32_t>();
  for (int64_t i = 0; i < received.numel(); ++i) {
    next =
        std::fill_n(next, received.data<int32_t>()[i], static_cast<int32_t>(i % received.dim(1)));
  }
  return ids;
}

// One for every row, in the type of weights.
Var Ones(Context& ctx, int64_t rows, DType dtype) {
  Tensor ones = ctx.Empty({rows, 1}, dtype);
  VisitFloat(dtype,
             [&]<typename T>(T) { std::fill_n(ones.data<T>(), rows, static_cast<T>(1.0F)); });
  return {ones};
}

}  // namespace

Dispatched AllToAllDispatcher::Dispatch(Context& ctx, const Var& x, const Routing& routing,
                                        int layer) const {
  const OpLabel label = {"experts", layer};
  Dispatched out = {.weights = routing.weights,
                    .plan = ops::PlanPermutation(ctx, routing.ids, experts_)};
  Traffic traffic = CountTraffic(ctx, out.plan.offsets, ranks_, label);
  const Var sorted = ops::Permute(ctx, x, out.plan);
  const Var came = AllToAllRows(ctx, sorted, traffic.rows, ctx.groups->ep, label);
  out.counts = std::move(traffic.rows);
  out.arrived = ops::PlanPermutation(ctx, ArrivingExperts(ctx, traffic.received, came.value.dim(0)),
                                     experts_ / ranks_);
  out.rows = ops::Permute(ctx, came, out.arrived);
  out.offsets = out.arrived.offsets;
  return out;
}

Var AllToAllDispatcher::Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                                int layer) const {
  const Var ones = Ones(ctx, rows.value.dim(0), dispatched.weights.value.dtype());
  const Var in_order = ops::Unpermute(ctx, rows, ones, dispatched.arrived);
  const RowCounts back = {.send = dispatched.counts.receive, .receive = dispatched.counts.send};
  const Var home = AllToAllRows(ctx, in_order, back, ctx.groups->ep, {"experts", layer});
  return ops::Unpermute(ctx, home, dispatched.weights, dispatched.plan);
}

}  // namespace cadre::moe
