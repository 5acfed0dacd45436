// What one forward pass works on: packed ragged tokens, the same for training, scoring, prefill and
// decode. Sequence s is tokens [offsets[s], offsets[s + 1]); nothing is padded.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/ops/attention_statistics.h"
#include "core/ops/kv_view.h"
#include "core/ops/permute.h"
#include "core/tensor.h"
#include "parallel/ring_attention.h"

namespace cadre {

// A sequence whose keys are kept unrotated and take the positions that they have in the cache: key
// i of `from` is rotated by i into slot to[i], its value as it is.
struct KvRotation {
  std::vector<int64_t> from, to;  // slots, oldest first
};

// One layer's part of a paged cache; borrowed for the length of the call.
struct KvLayer {
  ops::KvView view;                // S sequences, the batch's tokens counted in
  std::span<const int64_t> slots;  // [T] where the tokens' keys and values go, see ops::WriteKvArgs
  // [T] where they go besides with the keys unrotated, or empty; of plain attention alone.
  std::span<const int64_t> unrotated_slots = {};
  std::span<const KvRotation> rotations = {};  // made once the slots are written
};

// One layer's queries, after its attention over paged blocks.
struct LayerQueries {
  int layer;
  // q [T, H, dh] and lse of the whole batch, and its view; keys and scores are not set.
  const ops::AttentionStatisticsArgs& attention;
  // [R, H, N] of the observer's sequences, see ops::AttentionTold; undefined where there are none,
  // and in f64.
  Tensor scores;
};

// Who looks at a batch's attention: for policies of KV eviction.
struct BatchObserver {
  std::function<void(Context&, const LayerQueries&)> call;  // for every layer
  std::vector<int32_t> sequences = {};  // ascending, of one query each, whose scores it wants
};

// Where context-parallel ranks share a batch's tokens (parallel/zigzag.h): what a rank knows of
// all.
struct ContextShare {
  std::vector<int32_t> offsets;  // [S + 1] of the sequences in the whole batch
  std::vector<int32_t> tokens;   // [T] which of the whole batch's tokens the rank has, ascending
  // From the tokens of rank 0, rank 1, ... end to end to the whole batch's order.
  ops::PermutationPlan order;
  std::shared_ptr<const RingShares> ring;  // what each rank has
};

struct Batch {
  Tensor ids;                    // i32 [T], each in [0, V)
  Tensor positions;              // i32 [T], each below the model's max_position
  std::vector<int32_t> offsets;  // [S + 1], offsets[0] = 0
  // Empty: attention is over the batch itself, each sequence whole and starting at position 0.
  // Else one entry a layer: the tokens' keys and values are written there, and each sequence's
  // queries, its last tokens, attend over its blocks.
  std::vector<KvLayer> kv;
  std::vector<int32_t> query_positions;  // [T] where a view has explicit positions; else empty
  // Set where other ranks have the rest of the tokens. offsets are then the own tokens' in each of
  // the sequences: some may be empty, and a sequence may have a gap.
  std::optional<ContextShare> context;

  // Of a batch over itself: keys and values as a cache of this kind would give them back, so that
  // it has the bits of a server with such a cache. No gradient.
  ops::KvQuantization kv_quantization = ops::KvQuantization::kNone;

  BatchObserver observer = {};  // may have no call

  // Workers that attention's tiles are cut over, see ops::AttentionArgs; changes no bit.
  int attention_workers = 0;

  int64_t tokens() const { return ids.numel(); }
  int64_t sequences() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

// A batch over itself: the sequences end to end, each from position 0.
Batch PackSequences(Allocator& allocator, std::span<const std::vector<int32_t>> sequences);

// The tokens of `rank` of a whole batch over itself; row_offsets as in parallel/zigzag.h.
Batch ShareOf(Allocator& allocator, const Batch& whole, std::span<const int32_t> row_offsets,
              int ranks, int rank);

}  // namespace cadre
