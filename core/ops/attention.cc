#include "core/ops/attention.h"

#include <memory>
#include <vector>

#include "core/ops/kernel.h"

namespace cadre::ops {
namespace {

// Which tokens are keys and which are queries, sequence by sequence.
struct Sequences {
  std::vector<int32_t> offsets, query_offsets;  // [S + 1]
  std::vector<int32_t> query_positions;         // empty: query i of a sequence is at i

  // Keys of sequence s that a query sees.
  int32_t length(int64_t s) const {
    if (query_positions.empty()) return offsets[s + 1] - offsets[s];
    if (query_offsets[s] == query_offsets[s + 1]) return 0;
    return query_positions[query_offsets[s + 1] - 1] + 1;
  }
};

DType StatisticsDType(const Tensor& x) {
  return x.dtype() == DType::kF64 ? DType::kF64 : DType::kF32;
}

void Forward(Context& ctx, const AttentionForwardArgs& args) {
  switch (KernelFor(args.q)) {
    case Kernel::kReference:
      return AttentionForwardReference(ctx, args);
    case Kernel::kCpu:
      return AttentionForwardCpu(ctx, args);
    case Kernel::kCuda:
      NoCudaKernel("attention");
  }
}

void Grad(Context& ctx, const AttentionGradArgs& args) {
  switch (KernelFor(args.q)) {
    case Kernel::kReference:
      return AttentionGradReference(ctx, args);
    case Kernel::kCpu:
      return AttentionGradCpu(ctx, args);
    case Kernel::kCuda:
      NoCudaKernel("attention");
  }
}

void SinkGrad(Context& ctx, const AttentionSinkGradArgs& args) {
  switch (KernelFor(args.out)) {
    case Kernel::kReference:
      return AttentionSinkGradReference(ctx, args);
    case Kernel::kCpu:
      return AttentionSinkGradCpu(ctx, args);
    case Kernel::kCuda:
      NoCudaKernel("attention");
  }
}

void CheckOffsets(std::span<const int32_t> offsets, int64_t tokens) {
  CADRE_CHECK(!offsets.empty() && offsets.front() == 0 && offsets.back() == tokens,
              "attention: offsets of {} sequences do not cover {} tokens", offsets.size(), tokens);
  for (size_t s = 1; s < offsets.size(); ++s) {
    CADRE_CHECK(offsets[s - 1] <= offsets[s], "attention: offset {} is {} after {}", s, offsets[s],
                offsets[s - 1]);
  }
}

void CheckShapes(Context& ctx, const Tensor& q, const KvLayout& layout, const AttentionArgs& args) {
  CADRE_CHECK(q.shape().rank() == 3 && q.dim(2) == layout.key_dim && layout.kv_heads > 0 &&
                  q.dim(1) % layout.kv_heads == 0,
              "attention: q {} over {} KV heads of size {}", q.shape().ToString(), layout.kv_heads,
              layout.key_dim);
  CADRE_CHECK(layout.dtype == KvPoolDType(q.dtype()) && layout.block_size > 0 &&
                  layout.block_size % 16 == 0,
              "attention: q of dtype {}, keys of dtype {} in blocks of {}",
              static_cast<int>(q.dtype()), static_cast<int>(layout.dtype), layout.block_size);
  CADRE_CHECK(args.sliding_window >= 0 && args.workers >= 0, "attention: window {}, workers {}",
              args.sliding_window, args.workers);
  if (args.sinks != kNoParam) {
    CADRE_CHECK(ctx.parameters->spec(args.sinks).shape == Shape({q.dim(1)}), "attention: sinks {}",
                ctx.parameters->spec(args.sinks).shape.ToString());
  }
  CheckOffsets(args.offsets, q.dim(0));
}

void RunForward(Context& ctx, AttentionForwardArgs forward, ParamId sinks) {
  if (sinks == kNoParam) return Forward(ctx, forward);
  LeasedWeight weight(ctx, sinks, Lease::kForward);
  forward.sinks = weight.tensor();
  Forward(ctx, forward);
}

Sequences MakeSequences(const AttentionArgs& args) {
  Sequences s{.offsets = {args.offsets.begin(), args.offsets.end()}};
  if (args.query_rows.empty()) {
    s.query_offsets = s.offsets;
    return s;
  }
  s.query_offsets = {0};
  int32_t before = -1;
  for (const int32_t row : args.query_rows) {
    CADRE_CHECK(before < row && row < s.offsets.back(), "attention: query row {} after {} of {}",
                row, before, s.offsets.back());
    while (row >= s.offsets[s.query_offsets.size()]) {
      s.query_offsets.push_back(static_cast<int32_t>(s.query_positions.size()));
    }
    s.query_positions.push_back(row - s.offsets[s.query_offsets.size() - 1]);
    before = row;
  }
  s.query_offsets.resize(s.offsets.size(), static_cast<int32_t>(s.query_positions.size()));
  return s;
}

// The batch as a pool of its own: sequence after sequence, each from a block's start. Of a
// sequence's keys the first lengths[s] are needed.
struct PackedBatch {
  Tensor pool;
  std::vector<int32_t> tables, lengths, positions;
  KvView view;

  PackedBatch(Context& ctx, const Tensor& k, const Tensor& v, std::span<const int32_t> offsets,
              std::vector<int32_t> needed, KvQuantization quantization = KvQuantization::kNone)
      : lengths(std::move(needed)) {
    view.layout = {.dtype = KvPoolDType(k.dtype()),
                   .kv_heads = static_cast<int>(k.dim(1)),
                   .key_dim = static_cast<int>(k.dim(2)),
                   .value_dim = static_cast<int>(v.dim(2)),
                   .block_size = static_cast<int>(kAttentionKeyTile),
                   .quantization = quantization};
    const int64_t sequences = static_cast<int64_t>(offsets.size()) - 1;
    std::vector<int32_t> first(sequences + 1, 0);
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t blocks = (lengths[s] + kAttentionKeyTile - 1) / kAttentionKeyTile;
      first[s + 1] = static_cast<int32_t>(first[s] + blocks);
      view.table_stride = std::max(view.table_stride, blocks);
    }
    tables.resize(sequences * view.table_stride);
    std::vector<int64_t> slots(k.dim(0), -1);
    for (int64_t s = 0; s < sequences; ++s) {
      for (int32_t b = first[s]; b < first[s + 1]; ++b) {
        tables[s * view.table_stride + b - first[s]] = b;
      }
      for (int32_t i = 0; i < lengths[s]; ++i) {
        slots[offsets[s] + i] = first[s] * kAttentionKeyTile + i;
      }
    }
    pool = ctx.Empty({first[sequences], view.layout.block_bytes()}, DType::kU8);
    view.data = pool.raw();
    view.block_tables = tables;
    view.context_lengths = lengths;
    WriteKv(ctx, {k, v, slots, view.data, view.layout});
  }

  // Of each token; without, a sequence's i-th key is at position i.
  void SetPositions(std::span<const int32_t> offsets, std::span<const int32_t> of_tokens) {
    constexpr int64_t kT = kAttentionKeyTile;
    positions.assign(pool.dim(0) * view.layout.kv_heads * kT, -1);
    for (int64_t s = 0; s < view.sequences(); ++s) {
      for (int64_t i = 0; i < lengths[s]; ++i) {
        const int64_t block = view.Block(s, i / kT) * view.layout.kv_heads;
        for (int64_t h = 0; h < view.layout.kv_heads; ++h) {
          positions[(block + h) * kT + i % kT] = of_tokens[offsets[s] + i];
        }
      }
    }
    view.positions = positions.data();
  }
};

// The batch, a few sequences at a time, so that their keys and values stay in the caches between
// being packed and being read.
void RunPacked(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
               const AttentionArgs& args, const Sequences& all, const Tensor& out,
               const Tensor& lse) {
  constexpr int64_t kBytes = int64_t{2} << 20;  // per thread, about a second-level cache
  const int64_t row = k.dim(1) * (k.dim(2) + v.dim(2)) * static_cast<int64_t>(SizeOf(k.dtype()));
  const size_t sequences = args.offsets.size() - 1;
  for (size_t first = 0, end = 0; first < sequences; first = end) {
    const int32_t begin = all.offsets[first], query = all.query_offsets[first];
    std::vector<int32_t> offsets = {0}, queries = {0}, lengths;
    do {
      lengths.push_back(all.length(static_cast<int64_t>(end++)));
      offsets.push_back(all.offsets[end] - begin);
      queries.push_back(all.query_offsets[end] - query);
    } while (end < sequences && (all.offsets[end + 1] - begin) * row <= kBytes * ctx.threads);
    const int64_t tokens = offsets.back(), rows = queries.back();
    if (rows == 0) continue;
    PackedBatch batch(ctx, k.Narrow(begin, tokens), v.Narrow(begin, tokens), offsets,
                      std::move(lengths), args.quantization);
    AttentionArgs part = args;
    part.offsets = queries;
    CheckShapes(ctx, q.Narrow(query, rows), batch.view.layout, part);
    std::span<const int32_t> positions = all.query_positions;
    if (!positions.empty()) positions = positions.subspan(query, rows);
    RunForward(ctx,
               {.q = q.Narrow(query, rows),
                .kv = batch.view,
                .scale = args.scale,
                .window = args.sliding_window,
                .workers = args.workers,
                .offsets = queries,
                .query_positions = positions,
                .out = out.Narrow(query, rows),
                .lse = lse.Narrow(query, rows)},
               args.sinks);
  }
}

void CheckTold(const Tensor& q, const KvView& kv, const AttentionArgs& args,
               const AttentionTold& told) {
  const Tensor& scores = told.scores;
  CADRE_CHECK(q.dtype() != DType::kF64 && args.sliding_window == 0 && kv.positions == nullptr &&
                  scores.defined() && scores.dtype() == DType::kF32 && scores.shape().rank() == 3 &&
                  scores.dim(1) == q.dim(1) && scores.dim(2) % kAttentionKeyTile == 0 &&
                  told.score_rows.size() == kv.context_lengths.size(),
              "attention: scores {} of {} sequences", scores.shape().ToString(),
              told.score_rows.size());
  for (size_t s = 0; s < told.score_rows.size(); ++s) {
    CADRE_CHECK(told.score_rows[s] < 0 || (told.score_rows[s] < scores.dim(0) &&
                                           args.offsets[s + 1] - args.offsets[s] == 1 &&
                                           kv.context_lengths[s] <= scores.dim(2)),
                "attention: scores {} of sequence {}, {} keys", scores.shape().ToString(), s,
                kv.context_lengths[s]);
  }
}

struct Slots {
  SlotId q, k, v, out, lse;
};

Node GradNode(const Slots& saved, const Slots& inputs, const AttentionArgs& args,
              const std::shared_ptr<const Sequences>& all) {
  Node node{.name = "attention", .inputs = {inputs.q, inputs.k, inputs.v}, .outputs = {saved.out}};
  node.input_grad = [saved, inputs, all, scale = args.scale,
                     window = args.sliding_window](GradContext& g) {
    Tensor q = g.Read(saved.q), k = g.Read(saved.k), v = g.Read(saved.v);
    Context& ctx = g.ctx();
    AttentionGradArgs grad{.q = q,
                           .k = k,
                           .v = v,
                           .out = g.Read(saved.out),
                           .lse = g.Read(saved.lse),
                           .scale = scale,
                           .window = window,
                           .offsets = all->offsets,
                           .query_offsets = all->query_offsets,
                           .query_positions = all->query_positions,
                           .dq = ctx.Empty(q.shape(), q.dtype()),
                           .dk = ctx.Empty(k.shape(), k.dtype()),
                           .dv = ctx.Empty(v.shape(), v.dtype())};
    grad.dout = g.OutputGrad(saved.out).Reshape(grad.out.shape());
    Grad(ctx, grad);
    g.AddGrad(inputs.q, grad.dq);
    g.AddGrad(inputs.k, grad.dk);
    g.AddGrad(inputs.v, grad.dv);
  };
  return node;
}

}  // namespace

Var Attention(Context& ctx, const Var& q, const Var& k, const Var& v, const AttentionArgs& args) {
  const int64_t queries = q.value.dim(0), heads = q.value.dim(1), tokens = k.value.dim(0);
  CADRE_CHECK(
      k.value.shape().rank() == 3 && v.value.shape().rank() == 3 && v.value.dim(0) == tokens &&
          queries ==
              (args.query_rows.empty() ? tokens : static_cast<int64_t>(args.query_rows.size())) &&
          v.value.dim(1) == k.value.dim(1),
      "attention: q {}, k {}, v {}", q.value.shape().ToString(), k.value.shape().ToString(),
      v.value.shape().ToString());
  CADRE_CHECK(ctx.tape == nullptr || args.quantization == KvQuantization::kNone,
              "attention: quantized keys and values have no gradient");
  CheckOffsets(args.offsets, tokens);
  auto all = std::make_shared<const Sequences>(MakeSequences(args));
  Var out{ctx.Empty({queries, heads, v.value.dim(2)}, q.value.dtype())};
  Tensor lse = ctx.Empty({queries, heads}, StatisticsDType(q.value));
  RunPacked(ctx, q.value, k.value, v.value, args, *all, out.value, lse);
  if (ctx.tape == nullptr) return out;

  Tape& tape = *ctx.tape;
  out.slot = tape.NewSlot();
  Slots saved{tape.SlotToSave(q), tape.SlotToSave(k), tape.SlotToSave(v), out.slot, tape.NewSlot()};
  Node node = GradNode(saved, {q.slot, k.slot, v.slot, out.slot, kNoSlot}, args, all);
  const bool sinks = args.sinks != kNoParam && ctx.parameters->WantsGradient(args.sinks);
  const Pass statistics = sinks ? Pass::kBoth : Pass::kInput;
  node.saved = {{saved.q, q.value, Pass::kInput},
                {saved.k, k.value, Pass::kInput},
                {saved.v, v.value, Pass::kInput},
                {saved.out, out.value, statistics},
                {saved.lse, lse, statistics}};
  if (sinks) {
    node.params = {args.sinks};
    node.weight_grad = [saved, id = args.sinks](GradContext& g) {
      LeasedWeight weight(g.ctx(), id, g.lease());
      Tensor out = g.Read(saved.out);
      SinkGrad(g.ctx(), {out, g.Read(saved.lse), g.OutputGrad(saved.out).Reshape(out.shape()),
                         weight.tensor(), g.ctx().parameters->Gradient(id)});
    };
  }
  tape.Record(std::move(node));
  return out;
}

AttentionPart AttendToPart(Context& ctx, const AttentionPartArgs& args) {
  CheckOffsets(args.offsets, args.k.dim(0));
  CheckOffsets(args.query_offsets, args.q.dim(0));
  CADRE_CHECK(args.offsets.size() == args.query_offsets.size() &&
                  static_cast<int64_t>(args.key_positions.size()) == args.k.dim(0) &&
                  static_cast<int64_t>(args.query_positions.size()) == args.q.dim(0),
              "attention: {} and {} sequences, {} and {} positions", args.offsets.size() - 1,
              args.query_offsets.size() - 1, args.key_positions.size(),
              args.query_positions.size());
  std::vector<int32_t> lengths;
  for (size_t s = 0; s + 1 < args.offsets.size(); ++s) {
    lengths.push_back(args.offsets[s + 1] - args.offsets[s]);
  }
  PackedBatch keys(ctx, args.k, args.v, args.offsets, std::move(lengths));
  keys.SetPositions(args.offsets, args.key_positions);
  const int64_t tokens = args.q.dim(0), heads = args.q.dim(1);
  AttentionPart part{ctx.Empty({tokens, heads, args.v.dim(2)}, args.q.dtype()),
                     ctx.Empty({tokens, heads}, StatisticsDType(args.q))};
  Forward(ctx, {.q = args.q,
                .kv = keys.view,
                .scale = args.scale,
                .window = args.window,
                .offsets = args.query_offsets,
                .query_positions = args.query_positions,
                .ascending_keys = true,
                .out = part.out,
                .lse = part.lse});
  return part;
}

void AttentionPartGrad(Context& ctx, const AttentionGradArgs& args) { Grad(ctx, args); }

Tensor PagedAttention(Context& ctx, const Tensor& q, const KvView& kv, const AttentionArgs& args,
                      std::span<const int32_t> query_positions, const AttentionTold& told) {
  CheckShapes(ctx, q, kv.layout, args);
  const int64_t sequences = static_cast<int64_t>(args.offsets.size()) - 1;
  CADRE_CHECK(kv.sequences() == sequences, "attention: {} contexts for {} sequences",
              kv.sequences(), sequences);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = kv.context_lengths[s];
    CADRE_CHECK(kv.positions != nullptr || args.offsets[s + 1] - args.offsets[s] <= length,
                "attention: {} queries over {} keys", args.offsets[s + 1] - args.offsets[s],
                length);
    CADRE_CHECK(length <= kv.table_stride * kv.layout.block_size, "attention: {} keys in {} blocks",
                length, kv.table_stride);
  }
  CADRE_CHECK(kv.positions == nullptr ? query_positions.empty()
                                      : static_cast<int64_t>(query_positions.size()) == q.dim(0),
              "attention: {} query positions for {} tokens", query_positions.size(), q.dim(0));
  if (told.scores.defined() || !told.score_rows.empty()) CheckTold(q, kv, args, told);
  Tensor out = ctx.Empty({q.dim(0), q.dim(1), kv.layout.value_dim}, q.dtype());
  RunForward(ctx,
             {.q = q,
              .kv = kv,
              .scale = args.scale,
              .window = args.sliding_window,
              .workers = args.workers,
              .offsets = args.offsets,
              .query_positions = query_positions,
              .out = out,
              .lse = told.lse,
              .scores = told.scores,
              .score_rows = told.score_rows},
             args.sinks);
  return out;
}

}  // namespace cadre::ops
