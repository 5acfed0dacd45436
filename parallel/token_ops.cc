#include "parallel/token_ops.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/ops/elementwise.h"

namespace cadre {
namespace {

struct InFlight {
  Tensor output;
  WorkPtr work;
};

const char* NameOf(TokenOp op) {
  switch (op) {
    case TokenOp::kCopy:
      return "copy_tokens";
    case TokenOp::kGather:
      return "gather_tokens";
    case TokenOp::kScatter:
      return "scatter_tokens";
    case TokenOp::kReduce:
      return "reduce_tokens";
    case TokenOp::kSplit:
      return "split_tokens";
    case TokenOp::kJoin:
      return "join_tokens";
    case TokenOp::kRows:
      return "all_to_all_rows";
    case TokenOp::kGatherRows:
      return "gather_rows";
    case TokenOp::kScatterRows:
      return "scatter_rows";
  }
  __builtin_unreachable();
}

// What brings the gradient of the result to the input.
Exchange Reverse(Exchange exchange) {
  switch (exchange.op) {
    case TokenOp::kCopy:
      exchange.op = TokenOp::kReduce;
      break;
    case TokenOp::kGather:
      exchange.op = TokenOp::kScatter;
      break;
    case TokenOp::kScatter:
      exchange.op = TokenOp::kGather;
      break;
    case TokenOp::kReduce:
      exchange.op = TokenOp::kCopy;
      break;
    case TokenOp::kSplit:
      exchange.op = TokenOp::kJoin;
      break;
    case TokenOp::kJoin:
      exchange.op = TokenOp::kSplit;
      break;
    case TokenOp::kRows:
      break;
    case TokenOp::kGatherRows:
      exchange.op = TokenOp::kScatterRows;
      break;
    case TokenOp::kScatterRows:
      exchange.op = TokenOp::kGatherRows;
      break;
  }
  std::swap(exchange.rows.send, exchange.rows.receive);
  return exchange;
}

Shape WithRows(const Shape& shape, int64_t rows) {
  std::vector<int64_t> dims(shape.dims().begin(), shape.dims().end());
  dims[0] = rows;
  return Shape(dims);
}

int64_t Sum(const std::vector<int64_t>& rows) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

InFlight BeginRows(Context& ctx, const Exchange& exchange, const Tensor& x) {
  const RowCounts& rows = exchange.rows;
  Communicator& group = *exchange.group;
  const auto rank = static_cast<size_t>(group.rank());
  const bool gather = exchange.op == TokenOp::kGatherRows;
  const bool scatter = exchange.op == TokenOp::kScatterRows;
  const int64_t brings = gather ? rows.receive[rank] : Sum(rows.send);
  CADRE_CHECK(brings == x.dim(0), "{} rows to send of {}", brings, x.shape().ToString());
  const int64_t gets = scatter ? rows.send[rank] : Sum(rows.receive);
  Tensor y = ctx.Empty(WithRows(x.shape(), gets), x.dtype());
  if (gather) return {y, group.AllGatherV(x, y, rows.receive, exchange.label)};
  if (scatter) return {y, group.ReduceScatterV(x, y, rows.send, ReduceOp::kSum, exchange.label)};
  return {y, group.AllToAllV(x, rows.send, y, rows.receive, exchange.label)};
}

InFlight SplitRun(const Exchange& exchange, const Tensor& x) {
  const Communicator& group = *exchange.group;
  const std::vector<int64_t> runs = TokenRuns(x.dim(0), group.size());
  const auto own = runs.begin() + group.rank();
  return {x.Narrow(std::accumulate(runs.begin(), own, int64_t{0}), *own), nullptr};
}

InFlight JoinRuns(Context& ctx, const Exchange& exchange, const Tensor& x) {
  const std::vector<int64_t>& runs = exchange.rows.receive;
  Tensor y = ctx.Empty(WithRows(x.shape(), Sum(runs)), x.dtype());
  return {y, exchange.group->AllGatherV(x, y, runs, exchange.label)};
}

InFlight Begin(Context& ctx, const Exchange& exchange, const Tensor& x) {
  Communicator& group = *exchange.group;
  const int64_t n = group.size();
  Tensor y;
  switch (exchange.op) {
    case TokenOp::kCopy:
      return {x, nullptr};
    case TokenOp::kSplit:
      return SplitRun(exchange, x);
    case TokenOp::kJoin:
      if (!exchange.rows.receive.empty()) return JoinRuns(ctx, exchange, x);
      [[fallthrough]];
    case TokenOp::kGather:
      y = ctx.Empty(WithRows(x.shape(), x.dim(0) * n), x.dtype());
      return {y, group.AllGather(x, y, exchange.label)};
    case TokenOp::kScatter:
      CADRE_CHECK(x.dim(0) % n == 0, "{} tokens over {} ranks", x.dim(0), n);
      y = ctx.Empty(WithRows(x.shape(), x.dim(0) / n), x.dtype());
      return {y, group.ReduceScatter(x, y, ReduceOp::kSum, exchange.label)};
    case TokenOp::kReduce:
      y = ctx.Empty(x.shape(), x.dtype());
      ops::ConvertInto(ctx, x, y);
      return {y, group.AllReduce(y, ReduceOp::kSum, exchange.label)};
    case TokenOp::kRows:
    case TokenOp::kGatherRows:
    case TokenOp::kScatterRows:
      return BeginRows(ctx, exchange, x);
  }
  __builtin_unreachable();
}

Tensor Land(Context& ctx, const InFlight& flight, const OpLabel& label) {
  if (flight.work == nullptr || Landed(ctx, *flight.work, label)) return flight.output;
  return ctx.Zeros(flight.output.shape(), flight.output.dtype());
}

// Counts by the rank that announces them, [n, ...]: what arrived, or zeros where one of them is
// impossible.
Tensor Plausible(Context& ctx, const InFlight& flight, int32_t most, const Communicator& group,
                 const OpLabel& label) {
  const Tensor told = Land(ctx, flight, label);
  const int64_t columns = told.numel() / group.size();
  for (int64_t i = 0; i < told.numel(); ++i) {
    const int32_t count = told.data<int32_t>()[i];
    if (count >= 0 && count <= most) continue;
    ctx.groups->Record(Internal("rank {} of {} announces {} rows for {}, at most {} are allowed",
                                group.ranks()[static_cast<size_t>(i / columns)], group.name(),
                                count, ToString(label), most));
    return ctx.Zeros(told.shape(), told.dtype());
  }
  return told;
}

void RecordReverse(Tape& tape, SlotId in, SlotId out, const Shape& shape, Exchange exchange) {
  Node node{.name = NameOf(exchange.op), .inputs = {in}, .outputs = {out}};
  node.input_grad = [in, out, shape, reverse = Reverse(std::move(exchange))](GradContext& g) {
    if (!g.Needs(in)) return;
    InFlight flight = Begin(g.ctx(), reverse, g.OutputGrad(out).Reshape(shape));
    if (flight.work == nullptr) return g.AddGrad(in, flight.output);
    g.AddGradDeferred(
        in, [flight, label = reverse.label](Context& ctx) { return Land(ctx, flight, label); });
  };
  tape.Record(std::move(node));
}

}  // namespace

std::vector<int64_t> TokenRuns(int64_t tokens, int ranks) {
  std::vector<int64_t> runs;
  for (int64_t r = 0; r < ranks; ++r) {
    runs.push_back(tokens * (r + 1) / ranks - tokens * r / ranks);
  }
  return runs;
}

PendingVar StartExchange(Context& ctx, const Var& x, Exchange exchange) {
  PendingVar pending;
  pending.input_ = x;
  if (GroupSize(exchange.group) == 1) {
    exchange.group = nullptr;
  } else {
    // What joins the gradients of unequal runs has to know them.
    if (exchange.op == TokenOp::kSplit && x.value.dim(0) % exchange.group->size() != 0) {
      const std::vector<int64_t> runs = TokenRuns(x.value.dim(0), exchange.group->size());
      exchange.rows = {.send = runs, .receive = runs};
    }
    InFlight flight = Begin(ctx, exchange, x.value);
    pending.output_ = flight.output;
    pending.work_ = flight.work;
  }
  pending.exchange_ = std::move(exchange);
  return pending;
}

// The node is recorded here, not at the start: so the reverse exchange starts as soon as the
// result's gradient is complete, and has until the input's producer to land.
Var PendingVar::Wait(Context& ctx) {
  CADRE_CHECK(input_.value.defined(), "awaited twice");
  const Var x = std::exchange(input_, {});
  if (exchange_.group == nullptr) return x;
  const InFlight flight{std::exchange(output_, {}), std::exchange(work_, nullptr)};
  Var y{Land(ctx, flight, exchange_.label)};
  if (ctx.tape == nullptr || x.slot == kNoSlot) return y;
  y.slot = ctx.tape->NewSlot();
  RecordReverse(*ctx.tape, x.slot, y.slot, y.value.shape(), std::move(exchange_));
  return y;
}

Tensor ExchangeCounts(Context& ctx, const Tensor& counts, int32_t most, Communicator* group,
                      const OpLabel& label) {
  if (GroupSize(group) == 1) return counts;
  Tensor told = ctx.Empty(counts.shape(), counts.dtype());
  told = Plausible(ctx, {told, group->AllToAll(counts, told, label)}, most, *group, label);
  const int64_t each = counts.numel() / group->size(), own = group->rank() * each;
  std::copy_n(counts.data<int32_t>() + own, each, told.data<int32_t>() + own);
  return told;
}

Tensor GatherCounts(Context& ctx, const Tensor& counts, int32_t most, Communicator* group,
                    const OpLabel& label) {
  if (GroupSize(group) == 1) return counts.Reshape({1, counts.numel()});
  Tensor told = ctx.Empty({group->size(), counts.numel()}, counts.dtype());
  told = Plausible(ctx, {told, group->AllGather(counts, told, label)}, most, *group, label);
  std::ranges::copy(counts.span<int32_t>(), told.data<int32_t>() + group->rank() * counts.numel());
  return told;
}

}  // namespace cadre
