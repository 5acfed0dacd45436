// KeptKv: what a sequence holds of the KV cache while a policy evicts from it. Every layer has
// units of its own (blocks of one layer, KvBlockPool::Unit), and every KV head its own tokens in
// their slots; all heads of a layer hold as many.
//
// The prompt is read layer by layer, so that one whole layer and what the others keep is all that
// there ever is (but for a prefix that is shared with others):
//
//   KeptKv kept(pool, *policy, {.tokens = S, .layers = L, .budget = C}, most_answer_tokens);
//   kept.Hold(blocks);                        // kept.blocks_needed() of them, from the pool
//   for every layer:
//     kept.BeginLayer(layer, shared_blocks);  // room for the prompt
//     ... its tokens' keys and values go to Slot(layer, i), attention reads table(layer) ...
//     kept.EndLayer(layer, attention);        // the layers so far keep what their budgets allow
//
// Then the answer, token by token:
//
//   kept.Append(position);                    // room for one in every layer
//   for every layer:
//     ... its key goes to NewestSlot(layer); attention reads table(layer), count(layer) slots ...
//     kept.Settle(ctx, layer, attention);     // a full layer drops a key of each head
//
// Keys lie rotated by their true positions, so attention needs to know none. A policy with
// positions_in_cache() keeps them unrotated: see RawSlot and Ordered.
//
// One thread at a time (the engine's). Borrows the pool and the policy. L layers, K KV heads, S
// tokens of the prompt, C budget (memory/kv_eviction.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/context.h"
#include "core/ops/attention_statistics.h"
#include "memory/kv_block_pool.h"
#include "memory/kv_eviction.h"

namespace cadre {

// What `queries` queries paid attention to, as policies weigh it, into `to`, whose kv_heads is set
// and whose memory is used again. `summed`: over the queries instead of their mean, as KeyAttention
// has it for Queries::kAll.
void WeighKeys(const ops::AttentionStatistics& statistics, int64_t queries, bool summed,
               KeyAttention* to);

class KeptKv {
 public:
  // pool.uniform(). answer_tokens: the most of an answer that are stored.
  KeptKv(const KvBlockPool& pool, const KvEvictionPolicy& policy, const EvictionShape& shape,
         int64_t answer_tokens);

  const KvEvictionPolicy& policy() const { return policy_; }
  const EvictionShape& shape() const { return shape_; }
  // Whether keys of the prompt leave.
  bool evicts_prompt() const { return policy_.Evicts(shape_); }
  // Enough from the first token to the last.
  int64_t blocks_needed() const;

  // Its blocks from now on; what was swapped out lies in them again.
  void Hold(std::span<const int32_t> blocks);
  bool holds() const { return held_ > 0; }
  // The bytes that matter go to memory of its own; the blocks are another's afterwards.
  void SwapOut();
  bool swapped() const { return !swapped_.empty(); }

  // Room for the prompt in a layer; the first shared.size() blocks' tokens lie in others' blocks.
  void BeginLayer(int layer, std::span<const int32_t> shared);
  // The layer's keys and values are all there. attention: of the policy's observed() queries to the
  // prompt's keys, those before the window or all; ignored where evicts_prompt() is false and the
  // policy does not observe all queries.
  void EndLayer(int layer, const KeyAttention& attention);

  void Append(int32_t position);
  // attention: of the newest query to the layer's slots, in their order; ignored where the policy
  // does not evict answers.
  void Settle(const Context& ctx, int layer, const KeyAttention& attention);

  std::span<const int32_t> table(int layer) const { return layers_[layer].units; }
  int64_t count(int layer) const { return layers_[layer].count; }
  // Where slot `index` of a layer lies, counted over all units.
  int64_t Slot(int layer, int64_t index) const;
  int64_t NewestSlot(int layer) const { return Slot(layer, count(layer) - 1); }
  // Of a head, oldest first.
  std::vector<int32_t> Positions(int layer, int64_t head) const;

  // Of a policy with positions_in_cache(). Where the unrotated key of the prompt's token `index`
  // goes; -1: it is not kept. The rotated ones lie in Slot until EndLayer.
  int64_t RawSlot(int layer, int64_t index) const;
  // The layer's slots, oldest first (all heads have the same), and room to rotate them into.
  std::vector<int64_t> Ordered(int layer) const;
  std::span<const int32_t> scratch() const { return scratch_; }
  int64_t ScratchSlot(int64_t index) const;

  int64_t units_in_use() const { return held_ - static_cast<int64_t>(free_.size()); }
  int64_t peak_units() const { return peak_; }

 private:
  struct Key {
    int32_t slot, position;
  };
  struct Layer {
    std::vector<int32_t> units;
    std::vector<int32_t> raw;  // kept ones of a prompt being read, unrotated
    int64_t shared = 0;        // leading units that are others'
    int64_t count = 0;
    int64_t most = 0;                    // keys that it keeps as the answer grows
    std::vector<std::vector<Key>> keys;  // [K], oldest first
    std::vector<float> scores;           // [K, n], oldest first
  };

  int64_t UnitsFor(int64_t slots) const { return (slots + block_size_ - 1) / block_size_; }
  int64_t UnitsNeeded() const;
  std::vector<int32_t> TakeUnits(int64_t count);
  void GiveUnits(Layer& layer, std::vector<int32_t>& units, int64_t keep);
  std::byte* Head(int32_t unit, int64_t head) const;
  void CopySlot(const Layer& layer, int64_t head, int64_t from, std::span<const int32_t> to_units,
                int64_t to) const;
  // Keeps `keep` keys of each head beside the recent ones.
  void Shrink(Layer& layer, int64_t keep);
  template <typename Body>
  void ForHeads(const Context& ctx, const Layer& layer, Body&& body) const;
  void DropWorst(Layer& layer, int64_t head, float* left);
  // newest_ becomes by_slot's mean, oldest first.
  void OrderNewest(const Context& ctx, const Layer& layer, const KeyAttention& by_slot);

  const KvBlockPool& pool_;
  const KvEvictionPolicy& policy_;
  const EvictionShape shape_;
  const int64_t answer_tokens_, block_size_, heads_;
  std::vector<Layer> layers_;
  std::vector<double> preferences_;
  std::vector<int32_t> free_, scratch_;
  int64_t held_ = 0, peak_ = 0;
  std::vector<std::byte> swapped_;
  // Kept for their memory: taking it anew for every layer of every token costs more than the work.
  KeyAttention newest_;
  std::vector<float> spare_;
};

}  // namespace cadre
