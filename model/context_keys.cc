#include "model/context_keys.h"

#include <functional>
#include <numeric>

#include "core/ops/columns.h"
#include "core/ops/permute.h"

namespace cadre {
namespace {

// x may have no tokens.
Var Flat(const Var& x) {
  const auto dims = x.value.shape().dims().subspan(1);
  const int64_t columns =
      std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
  return x.Reshape({x.value.dim(0), columns});
}

// The heads of x [T, K, d], cut.
std::vector<Var> Cut(Context& ctx, const Var& x, std::span<const int64_t> heads) {
  if (heads.size() == 1) return {x};
  std::vector<int64_t> columns;
  for (const int64_t n : heads) columns.push_back(n * x.value.dim(2));
  return ops::SplitColumns(ctx, Flat(x), columns);
}

}  // namespace

PendingTokens::PendingTokens(Context& ctx, const Var& x, const AttentionInputs& in)
    : all_(StartExchange(ctx, Flat(x),
                         {TokenOp::kGather, ContextGroup(ctx), {"keys and values", in.layer}})) {}

Var PendingTokens::Wait(Context& ctx, const AttentionInputs& in) {
  const Var all = all_.Wait(ctx);
  return in.batch.context.has_value() ? ops::Permute(ctx, all, in.batch.context->order) : all;
}

PendingKeys::PendingKeys(Context& ctx, const Var& k, const Var& v, int groups,
                         const AttentionInputs& in)
    : in_(in), key_dim_(k.value.dim(2)), value_dim_(v.value.dim(2)) {
  const int64_t all = k.value.dim(1);
  CADRE_CHECK(groups >= 1 && groups <= all, "{} groups of {} heads", groups, all);
  for (int64_t g = 0; g < groups; ++g) {
    heads_.push_back(all * (g + 1) / groups - all * g / groups);
  }
  k_ = Cut(ctx, k, heads_);
  v_ = Cut(ctx, v, heads_);
  Start(ctx, 0);
}

void PendingKeys::Start(Context& ctx, size_t group) {
  next_k_ = PendingTokens(ctx, k_[group], in_);
  next_v_ = PendingTokens(ctx, v_[group], in_);
}

KeyGroup PendingKeys::Wait(Context& ctx, int group) {
  const Var k = next_k_.Wait(ctx, in_), v = next_v_.Wait(ctx, in_);
  if (group + 1 < groups()) Start(ctx, static_cast<size_t>(group) + 1);
  const int64_t tokens = k.value.dim(0);
  return {k.Reshape({tokens, heads(group), key_dim_}),
          v.Reshape({tokens, heads(group), value_dim_})};
}

}  // namespace cadre
