// Causal attention over packed ragged tokens, in one canonical order of arithmetic.
//
//   out[t, h] = sum_j softmax_j(scale * q[t, h] . k[j, kv(h)]) v[j, kv(h)],  kv(h) = h * K / H
// over the keys j of t's sequence with j <= t's position and, with a sliding window w, j > position
// - w. A sink adds exp(sink[h]) to the softmax's denominator and nothing to the sum.
//
// Training attends over the batch itself, serving over paged blocks (KvView); both run the same
// kernel on the same block layout. A row's bits depend on its own query, keys and values alone:
// keys are taken in tiles of kAttentionKeyTile anchored at slot 0; each tile's (maximum, sum,
// unscaled output) is computed from scratch; tiles are folded left to right (the online softmax of
// Milakov & Gimelshein, 2018), the sink last, and the result divided once. So chunking of a
// prefill, block size, other rows and sequences, threads and workers change nothing. Where the
// machine multiplies bf16 itself (Bf16Kernel), bf16 rounds probabilities (and in the backward pass
// their gradients) to bf16 before they enter a product; otherwise they stay fp32.
//
// Over quantized keys and values (core/ops/kv_quantize.h) products are those of codes, and scores
// and probabilities are scaled in fp32; the order is the same.
//
// The backward pass recomputes probabilities from the saved log-sum-exp, tile by tile (Dao et al.,
// "FlashAttention", 2022); each (sequence, KV head) is summed by one thread in a fixed order.
//
// Shapes: q [T, H, dh], k [T, K, dh], v [T, K, dv], out [T, H, dv]; dh and dv may differ, K divides
// H. dtypes f64 (reference), f32, bf16, f16. Where the queries are some of the tokens only, q and
// out have their rows, and the gradients of k and v are what these queries add to them.
#pragma once

#include <span>

#include "core/ops/bf16_kernel.h"
#include "core/ops/kv_view.h"
#include "core/tape.h"

namespace cadre::ops {

inline constexpr int64_t kAttentionKeyTile = 64;

struct AttentionArgs {
  float scale = 1.0f;
  int sliding_window = 0;            // 0: none
  ParamId sinks = kNoParam;          // [H]
  std::span<const int32_t> offsets;  // [S + 1], sequence s is tokens [offsets[s], offsets[s + 1])
  // Ranges into which the tiles of all (sequence, KV head, row block) together are cut
  // (core/ops/lean_plan.h). 0: as many as keep the threads busy.
  int workers = 0;
  // The tokens whose queries q has, ascending; a row's bits are those it has among all. Empty: all.
  std::span<const int32_t> query_rows = {};
  // Attention alone: keys and values as a cache of this kind would give them back. No gradient.
  KvQuantization quantization = KvQuantization::kNone;
};

// Every sequence starts at position 0. `args.offsets` and `args.query_rows` are copied.
Var Attention(Context& ctx, const Var& q, const Var& k, const Var& v, const AttentionArgs& args);

// What attention over pages tells besides its output; written where defined.
struct AttentionTold {
  Tensor lse = {};  // [T, H], as in AttentionForwardArgs
  // f32 [R, H, N]: q . k of some sequences' queries, one each, by slots; minus infinity where a key
  // is hidden and past the last of its tile, anything in later tiles. N is a multiple of
  // kAttentionKeyTile. Not of f64, of windows, nor of views with positions.
  Tensor scores = {};
  std::span<const int32_t> score_rows = {};  // [S]: of a sequence in `scores`, or -1
};

// Sequence s's queries are its last tokens: offsets[s + 1] - offsets[s] of kv.context_lengths[s],
// whose keys and values already lie in the view. No gradient. With explicit positions in the view,
// query_positions [T] is needed; else it may be empty.
Tensor PagedAttention(Context& ctx, const Tensor& q, const KvView& kv, const AttentionArgs& args,
                      std::span<const int32_t> query_positions = {},
                      const AttentionTold& told = {});

// Attention to some of the keys: a part, to be put together with what the same queries get of the
// others. A row that sees none of these keys has zeros and a log-sum-exp of infinity. No gradient
// of its own: AttentionPartGrad takes the whole's `out`, `lse` and `dout`, and gives what these
// keys add to dq, and their own gradients.
struct AttentionPartArgs {
  Tensor q, k, v;
  double scale = 1;
  int window = 0;
  // As in AttentionGradArgs; none is empty.
  std::span<const int32_t> offsets, query_offsets, key_positions, query_positions;
};
struct AttentionPart {
  Tensor out;  // [T, H, dv]
  Tensor lse;  // [T, H], as in AttentionForwardArgs
};
AttentionPart AttendToPart(Context& ctx, const AttentionPartArgs& args);
struct AttentionGradArgs;
void AttentionPartGrad(Context& ctx, const AttentionGradArgs& args);

// One implementation's kernels.
struct AttentionForwardArgs {
  Tensor q;  // [T, H, dh]
  KvView kv;
  double scale = 1;
  int window = 0;
  int workers = 0;
  std::span<const int32_t> offsets;          // [S + 1] of the queries
  std::span<const int32_t> query_positions;  // [T], ascending in a sequence, or empty
  bool ascending_keys = false;               // of a view with positions: in each sequence
  Tensor sinks;                              // [H] or undefined
  Tensor out;                                // [T, H, dv]
  Bf16Kernel kernel = MachineBf16Kernel();   // another one: for tests
  int64_t kept_bytes = int64_t{16} << 20;    // most that workers' partials may take at a time
  Tensor lse;     // [T, H] f32, in powers of two (f64 for the reference, natural); may be undefined
  Tensor scores;  // as AttentionTold says; may be undefined
  std::span<const int32_t> score_rows;  // empty where it is
};
struct AttentionGradArgs {
  Tensor q, k, v, out, lse, dout;
  double scale = 1;
  int window = 0;
  std::span<const int32_t> offsets;          // [S + 1] of the keys
  std::span<const int32_t> query_offsets;    // [S + 1]
  std::span<const int32_t> query_positions;  // as above; empty: query i of a sequence is at i
  std::span<const int32_t> key_positions;    // likewise of the keys
  Bf16Kernel kernel = MachineBf16Kernel();
  Tensor dq, dk, dv;  // written
};
struct AttentionSinkGradArgs {
  Tensor out, lse, dout;
  Tensor sinks;   // [H]
  Tensor dsinks;  // [H] f32 (f64), added to
};
void AttentionForwardReference(Context& ctx, const AttentionForwardArgs& args);
void AttentionGradReference(Context& ctx, const AttentionGradArgs& args);
void AttentionSinkGradReference(Context& ctx, const AttentionSinkGradArgs& args);
void AttentionForwardCpu(Context& ctx, const AttentionForwardArgs& args);
void AttentionGradCpu(Context& ctx, const AttentionGradArgs& args);
void AttentionSinkGradCpu(Context& ctx, const AttentionSinkGradArgs& args);

}  // namespace cadre::ops
