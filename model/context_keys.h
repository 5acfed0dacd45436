// What attention takes from the other context-parallel ranks, on its way while the rank computes
// something else. Without them it is the rank's own, at once.
//
//   PendingKeys keys(ctx, k, v, 2, in);     // the first heads' keys and values start to travel
//   ... queries ...
//   for (int g = 0; g < keys.groups(); ++g) {
//     KeyGroup group = keys.Wait(ctx, g);   // the next heads' start
//     ... attention of these heads ...
//   }
//
// All ranks make the same calls in the same order. In the backward pass the gradients of a group's
// keys and values travel back while the group before it is computed. One thread.
#pragma once

#include <vector>

#include "model/attention_block.h"
#include "parallel/token_ops.h"

namespace cadre {

class PendingTokens {
 public:
  PendingTokens() = default;
  // x [T, ...] of the rank's tokens.
  PendingTokens(Context& ctx, const Var& x, const AttentionInputs& in);
  // Blocks; once. [T', width of a token]: of all ranks' tokens, in the whole batch's order.
  Var Wait(Context& ctx, const AttentionInputs& in);

 private:
  PendingVar all_;
};

class PendingKeys {
 public:
  // k [T, K, dh] and v [T, K, dv], whose heads are cut into `groups`, at most K. `in` outlives
  // this.
  PendingKeys(Context& ctx, const Var& k, const Var& v, int groups, const AttentionInputs& in);
  int groups() const { return static_cast<int>(heads_.size()); }
  int64_t heads(int group) const { return heads_[static_cast<size_t>(group)]; }
  // Blocks. Groups in order, each once.
  KeyGroup Wait(Context& ctx, int group);

 private:
  void Start(Context& ctx, size_t group);

  const AttentionInputs& in_;
  const int64_t key_dim_, value_dim_;
  std::vector<int64_t> heads_;
  std::vector<Var> k_, v_;  // by group
  PendingTokens next_k_, next_v_;
};

}  // namespace cadre
