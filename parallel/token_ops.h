// Collectives over packed tokens as ops with gradients. Between blocks rank r of n tensor-parallel
// ranks holds the r-th of n equal runs of the T tokens (sequence parallelism), or each holds all of
// them:
//
//   op              forward                                   gradient
//   GatherTokens    x [T/n, ...] -> [T, ...]: all-gather      sum over ranks, scattered
//   ScatterTokens   partial sums [T, ...] -> [T/n, ...]       all-gather
//   ReduceTokens    partial sums -> their sum on every rank   the identity
//   CopyTokens      the identity                              sum over ranks
//   SplitTokens     x [T, ...], the same on every rank -> own run [T/n, ...]: all-gather
//   JoinTokens      x [T/n, ...] -> [T, ...]: all-gather      own run
//   AllToAllRows    rows [R, ...] -> [R', ...] by counts      the same rows the other way
//   GatherRows      rows [R_r, ...] -> those of all ranks     sum over ranks, scattered
//   ScatterRows     partial sums of all ranks' rows -> own    all-gather
//
// A block on replicated tokens begins with CopyTokens and ends with ReduceTokens, one on split
// tokens begins with GatherTokens and ends with ScatterTokens. What a rank computes between is its
// own part of the block; its input's gradient is a partial sum, which these ops complete. Between
// SplitTokens and JoinTokens ranks that hold all tokens do something with a run each.
//
// `group`: null or of size 1 makes each the identity. All ranks of the group call the same ops in
// the same order and want gradients of the same. T that n does not divide is a broken invariant but
// for SplitTokens: the layout has been checked. Labels borrow their text, which lives as long as
// the tape.
//
// In the backward pass a collective starts as soon as its gradient is complete and is awaited where
// what it gives is read first. A failure is recorded in ctx.groups (groups.h), which must be there
// where the group has more than one rank.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "core/tape.h"
#include "parallel/groups.h"

namespace cadre {

enum class TokenOp : uint8_t {
  kGather,
  kScatter,
  kReduce,
  kCopy,
  kSplit,
  kJoin,
  kRows,
  kGatherRows,
  kScatterRows
};

// Row counts by rank of the group; rows for rank 0, or of it, come first. Of kGatherRows `receive`
// is how many each rank brings, of kScatterRows `send` how many each gets: the same on every rank.
struct RowCounts {
  std::vector<int64_t> send, receive;
};

// A collective and what its gradient needs to know.
struct Exchange {
  TokenOp op = TokenOp::kCopy;
  Communicator* group = nullptr;
  OpLabel label;
  RowCounts rows = {};  // of the ops on rows
};

// A result on its way: PendingVar y = StartExchange(...); ...; y.Wait(ctx). What is computed in
// between runs beside the exchange, its backward pass beside the reverse exchange.
class PendingVar {
 public:
  // Blocks. Once.
  Var Wait(Context& ctx);

 private:
  friend PendingVar StartExchange(Context& ctx, const Var& x, Exchange exchange);
  Var input_;
  Exchange exchange_;
  Tensor output_;
  WorkPtr work_;  // null: output_ is ready
};

PendingVar StartExchange(Context& ctx, const Var& x, Exchange exchange);

// The runs that SplitTokens gives, by rank: equal ones, or as equal as it goes. To join unequal
// ones, Exchange::rows.receive says what they are.
std::vector<int64_t> TokenRuns(int64_t tokens, int ranks);

// What a block gives: called once, it waits for what of its output is on its way.
using PendingOutput = std::function<Var(Context&)>;

inline PendingOutput OutputOf(PendingVar pending) {
  return [pending = std::move(pending)](Context& ctx) mutable { return pending.Wait(ctx); };
}

inline Var GatherTokens(Context& ctx, const Var& x, Communicator* group, const OpLabel& label) {
  return StartExchange(ctx, x, {TokenOp::kGather, group, label}).Wait(ctx);
}
inline Var ScatterTokens(Context& ctx, const Var& x, Communicator* group, const OpLabel& label) {
  return StartExchange(ctx, x, {TokenOp::kScatter, group, label}).Wait(ctx);
}
inline Var ReduceTokens(Context& ctx, const Var& x, Communicator* group, const OpLabel& label) {
  return StartExchange(ctx, x, {TokenOp::kReduce, group, label}).Wait(ctx);
}
inline Var CopyTokens(Context& ctx, const Var& x, Communicator* group, const OpLabel& label) {
  return StartExchange(ctx, x, {TokenOp::kCopy, group, label}).Wait(ctx);
}
inline Var SplitTokens(Context& ctx, const Var& x, Communicator* group, const OpLabel& label) {
  return StartExchange(ctx, x, {TokenOp::kSplit, group, label}).Wait(ctx);
}
inline Var JoinTokens(Context& ctx, const Var& x, Communicator* group, const OpLabel& label) {
  return StartExchange(ctx, x, {TokenOp::kJoin, group, label}).Wait(ctx);
}

// counts i32 [n, m]: row r is told to rank r. Returns [n, m]: row r is what rank r told. A count
// outside [0, most] is a failure of the rank that sent it. After a failure all are 0 but the rank's
// own.
Tensor ExchangeCounts(Context& ctx, const Tensor& counts, int32_t most, Communicator* group,
                      const OpLabel& label);

// counts i32 [m] -> [n, m]: row r is what rank r has. Failures as ExchangeCounts's; after one all
// but this rank's own are 0.
Tensor GatherCounts(Context& ctx, const Tensor& counts, int32_t most, Communicator* group,
                    const OpLabel& label);

// rows [sum of send, ...] -> [sum of receive, ...].
inline Var AllToAllRows(Context& ctx, const Var& rows, RowCounts counts, Communicator* group,
                        const OpLabel& label) {
  return StartExchange(ctx, rows, {TokenOp::kRows, group, label, std::move(counts)}).Wait(ctx);
}
// rows [counts[rank], ...] -> [sum of counts, ...].
inline Var GatherRows(Context& ctx, const Var& rows, std::vector<int64_t> counts,
                      Communicator* group, const OpLabel& label) {
  return StartExchange(ctx, rows,
                       {TokenOp::kGatherRows, group, label, {.receive = std::move(counts)}})
      .Wait(ctx);
}
// rows [sum of counts, ...] -> [counts[rank], ...].
inline Var ScatterRows(Context& ctx, const Var& rows, std::vector<int64_t> counts,
                       Communicator* group, const OpLabel& label) {
  return StartExchange(ctx, rows,
                       {TokenOp::kScatterRows, group, label, {.send = std::move(counts)}})
      .Wait(ctx);
}

}  // namespace cadre
