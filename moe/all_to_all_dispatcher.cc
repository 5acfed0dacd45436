#include <algorithm>
#include <numeric>

#include "moe/dispatcher.h"

namespace cadre::moe {
namespace {

// The sum of each row of counts.
std::vector<int64_t> RowSums(const Tensor& counts) {
  const int64_t columns = counts.dim(1);
  std::vector<int64_t> sums;
  for (int64_t r = 0; r < counts.dim(0); ++r) {
    const int32_t* row = counts.data<int32_t>() + r * columns;
    sums.push_back(std::accumulate(row, row + columns, int64_t{0}));
  }
  return sums;
}

// Rows to and from each rank of ep, and how many of each expert of this rank came from each.
struct Traffic {
  RowCounts rows;
  Tensor received;  // i32 [ranks, experts of this rank]
};

// most: what a rank can have to send.
Traffic CountTraffic(Context& ctx, const std::vector<int32_t>& offsets, int ranks, int32_t most,
                     const OpLabel& label) {
  const int64_t own = (static_cast<int64_t>(offsets.size()) - 1) / ranks;
  Tensor counts = ctx.Empty({ranks, own}, DType::kI32);
  for (int64_t e = 0; e < counts.numel(); ++e) {
    counts.data<int32_t>()[e] =
        offsets[static_cast<size_t>(e) + 1] - offsets[static_cast<size_t>(e)];
  }
  Traffic traffic;
  traffic.received = ExchangeCounts(ctx, counts, most, ctx.groups->ep, label);
  traffic.rows = {.send = RowSums(counts), .receive = RowSums(traffic.received)};
  return traffic;
}

// The expert of each row that arrives: by rank of etp, by rank of ep, by expert within one.
Tensor ArrivingExperts(Context& ctx, const Tensor& received, int64_t experts, int64_t rows) {
  Tensor ids = ctx.Empty({rows, 1}, DType::kI32);
  int32_t* next = ids.data<int32_t>();
  for (int64_t i = 0; i < received.numel(); ++i) {
    next = std::fill_n(next, received.data<int32_t>()[i], static_cast<int32_t>(i % experts));
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

Dispatched AllToAllDispatcher::Start(Context& ctx, const Var& x, const Routing& routing,
                                     int layer) const {
  const OpLabel label = {"experts", layer};
  Dispatched out = {.weights = routing.weights,
                    .plan = ops::PlanPermutation(ctx, routing.ids, experts_)};
  // Another rank's run may have a token more.
  const int64_t tokens = std::max(routing.ids.dim(0) + 1, routing.most_tokens);
  const auto most = static_cast<int32_t>(tokens * routing.ids.dim(1));
  Traffic traffic = CountTraffic(ctx, out.plan.offsets, ranks_, most, label);
  out.counts = std::move(traffic.rows);
  const Var sorted = ops::Permute(ctx, x, out.plan);
  out.rows_coming = StartExchange(ctx, sorted, {TokenOp::kRows, ctx.groups->ep, label, out.counts});
  out.received = GatherCounts(ctx, traffic.received, most, ctx.groups->etp, label);
  out.shared = RowSums(out.received);
  return out;
}

void AllToAllDispatcher::Finish(Context& ctx, Dispatched& dispatched, int layer) const {
  const Var came = dispatched.rows_coming.Wait(ctx);
  const Var all = GatherRows(ctx, came, dispatched.shared, ctx.groups->etp, {"experts", layer});
  const int64_t own = experts_ / ranks_;
  dispatched.arrived = ops::PlanPermutation(
      ctx, ArrivingExperts(ctx, dispatched.received, own, all.value.dim(0)), own);
  dispatched.rows = ops::Permute(ctx, all, dispatched.arrived);
  dispatched.offsets = dispatched.arrived.offsets;
}

PendingVar AllToAllDispatcher::Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                                       int layer) const {
  const OpLabel label = {"experts", layer};
  const Var ones = Ones(ctx, rows.value.dim(0), dispatched.weights.value.dtype());
  const Var partial = ops::Unpermute(ctx, rows, ones, dispatched.arrived);
  const Var came = ScatterRows(ctx, partial, dispatched.shared, ctx.groups->etp, label);
  const RowCounts back = {.send = dispatched.counts.receive, .receive = dispatched.counts.send};
  const Var home = AllToAllRows(ctx, came, back, ctx.groups->ep, label);
  return StartExchange(ctx, ops::Unpermute(ctx, home, dispatched.weights, dispatched.plan), {});
}

}  // namespace cadre::moe
