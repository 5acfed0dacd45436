#include "model/decoder.h"

#include <algorithm>

#include "core/ops/columns.h"
#include "core/ops/dropout.h"
#include "core/ops/rms_norm.h"
#include "core/trace.h"
#include "parallel/activity.h"
#include "parallel/row_parallel.h"

namespace cadre {
namespace {

// What a table covers unless more is asked for; 2^18 positions of 128 dimensions take 128 MiB.
constexpr int64_t kTablePositions = int64_t{1} << 18;

ParamBlock VocabularyBlock(int64_t vocabulary, const ModelPart& part) {
  const Shard rows = VocabularyPart(vocabulary, part.tp, part.tp_rank);
  return {.row_begin = rows.begin, .rows = rows.numel};
}

void CheckBatch(const DecoderSpec& spec, const Batch& batch) {
  int64_t tokens = batch.tokens();
  CADRE_CHECK(batch.positions.numel() == tokens && !batch.offsets.empty() &&
                  batch.offsets.front() == 0 && batch.offsets.back() == tokens,
              "{} ids, {} positions, {} offsets", tokens, batch.positions.numel(),
              batch.offsets.size());
  CADRE_CHECK(batch.kv.empty() || batch.kv.size() == spec.layers.size(),
              "{} cache layers for a model of {}", batch.kv.size(), spec.layers.size());
}

}  // namespace

absl::StatusOr<Decoder> Decoder::Create(const DecoderSpec& spec, const DecoderOptions& options,
                                        ParameterStore& store) {
  Decoder decoder(spec, options.part);
  int64_t positions = options.max_position > 0 ? options.max_position
                                               : std::min(spec.max_position, kTablePositions);
  CADRE_ASSIGN_OR_RETURN(ops::RopeTable table, ops::RopeTable::Build(spec.rope, positions));
  decoder.rope_ = std::make_shared<const ops::RopeTable>(std::move(table));

  if (!options.part.whole()) {
    store.set_part();
    // What a rank does not hold may be frozen all the same.
    ParameterStore all;
    CADRE_RETURN_IF_ERROR(Decoder(spec, {}).AddParameters({.frozen = options.frozen}, all));
  }
  CADRE_RETURN_IF_ERROR(decoder.AddParameters(options, store));
  return decoder;
}

absl::Status Decoder::AddParameters(const DecoderOptions& options, ParameterStore& store) {
  ParamBuilder params(store, spec_.init_stddev, options.frozen, part_);
  const ParamBlock vocabulary = VocabularyBlock(spec_.vocab, part_);
  const bool first = part_.first(), last = part_.last();
  const auto embedding = [&] {
    ParamSpec table =
        params.Table("model.embed_tokens.weight", spec_.vocab, spec_.hidden, vocabulary);
    table.shared_by_stages = spec_.tied && first != last;
    return params.Add(std::move(table));
  };
  if (first) embedding_ = embedding();
  layers_.resize(spec_.layers.size());
  for (const int stage : part_.stages) {
    const LayerRange range = part_.LayersOf(stage, static_cast<int>(layers_.size()));
    for (int i = range.begin; i < range.end; ++i) {
      params.set_layer(i);
      layers_[static_cast<size_t>(i)] = MakeLayer(i, params);
    }
  }
  params.set_layer(-1);
  if (last) {
    norm_ = params.Norm("model.norm.weight", spec_.hidden);
    if (!spec_.tied) {
      head_ = params.Head("lm_head.weight", spec_.vocab, spec_.hidden, vocabulary);
    } else {
      head_ = first ? embedding_ : embedding();
    }
  }
  // Create has looked at all of the model.
  return part_.whole() ? params.Finish() : absl::OkStatus();
}

Decoder::Layer Decoder::MakeLayer(int index, ParamBuilder& params) const {
  const LayerSpec& layer = spec_.layers[static_cast<size_t>(index)];
  std::string prefix = fmt::format("model.layers.{}.", index);
  std::string attention = prefix + "self_attn.";
  auto make_attention = [&]() -> std::variant<AttentionBlock, LatentAttentionBlock> {
    if (layer.attention.latent.kv_rank > 0) {
      return LatentAttentionBlock(spec_, layer.attention, attention, params);
    }
    return AttentionBlock(spec_, layer.attention, attention, params);
  };
  auto make_mlp = [&]() -> std::variant<MlpBlock, MoeBlock> {
    if (layer.is_moe) return MoeBlock(spec_.hidden, layer.moe, prefix, params);
    return MlpBlock(spec_.hidden, layer.mlp, prefix + "mlp.", params);
  };
  return {.input_norm = params.Norm(prefix + "input_layernorm.weight", spec_.hidden),
          .post_norm = params.Norm(prefix + "post_attention_layernorm.weight", spec_.hidden),
          .attention = make_attention(),
          .mlp = make_mlp()};
}

ParamId Decoder::router_correction(int layer) const {
  if (!holds(layer)) return kNoParam;
  const auto* block = std::get_if<MoeBlock>(&layers_[static_cast<size_t>(layer)]->mlp);
  return block == nullptr ? kNoParam : block->router().params().correction;
}

void Decoder::ForwardLayer(Context& ctx, int index, const Batch& batch,
                           const ForwardOptions& options, ResidualStream* stream,
                           DecoderOutput* out) const {
  const Layer& layer = *layers_[static_cast<size_t>(index)];
  const Wiring wiring = spec_.layers[static_cast<size_t>(index)].wiring;
  float eps = static_cast<float>(spec_.norm_eps);
  AttentionInputs inputs{.batch = batch, .rope = *rope_, .layer = index};
  RecordForward(ctx, index);
  Var normed = stream->Read(ctx, wiring, {layer.input_norm, eps});
  RecordBackwardFrom(ctx, normed, index > 0 && holds(index - 1) ? index - 1 : -1);
  PendingOutput half;
  {
    TraceScope scope(ctx.trace, "attention", {{"layer", index}});
    half = std::visit([&](const auto& block) { return block.Forward(ctx, normed, inputs); },
                      layer.attention);
  }
  stream->Add(ctx, wiring, Dropped(std::move(half), 2 * index, options));

  normed = stream->Read(ctx, wiring, {layer.post_norm, eps});
  TraceScope scope(ctx.trace, "mlp", {{"layer", index}});
  if (const auto* dense = std::get_if<MlpBlock>(&layer.mlp)) {
    half = dense->Forward(ctx, normed, index);
  } else {
    MoeBlock::Output mixed = std::get<MoeBlock>(layer.mlp).Forward(ctx, normed, OwnOffsets(batch),
                                                                   options.router, index);
    if (options.inspect_routing) Inspect(ctx, index, mixed.routing, options);
    for (Var& loss : mixed.routing.losses) out->router_losses.push_back(std::move(loss));
    out->routing.push_back({index, mixed.routing.ids, mixed.routing.dropped});
    half = std::move(mixed.y);
  }
  stream->Add(ctx, wiring, Dropped(std::move(half), 2 * index + 1, options));
}

void Decoder::Inspect(Context& ctx, int index, const moe::Routing& routing,
                      const ForwardOptions& options) const {
  const Shard own = OwnTokens(options.global_tokens.numel());
  RoutedTokens routed{.layer = index,
                      .tokens = options.global_tokens.Narrow(own.begin, own.numel),
                      .ids = routing.ids,
                      .logits = routing.logits};
  const ParamId correction = router_correction(index);
  if (correction == kNoParam) return options.inspect_routing(routed);
  const LeasedWeight weight(ctx, correction, Lease::kForward);
  routed.correction = weight.tensor();
  options.inspect_routing(routed);
}

PendingOutput Decoder::Dropped(PendingOutput half, int site, const ForwardOptions& options) const {
  if (options.dropout == 0.0) return half;
  const Tensor& all = options.global_tokens;
  const Shard own = OwnTokens(all.numel());
  const ops::DropoutArgs args{options.dropout, static_cast<uint32_t>(site),
                              all.Narrow(own.begin, own.numel)};
  return
      [half = std::move(half), args](Context& ctx) { return ops::Dropout(ctx, half(ctx), args); };
}

Shard Decoder::OwnTokens(int64_t n) const {
  if (!part_.sequence_parallel) return {0, n};
  return {n / part_.tp * part_.tp_rank, n / part_.tp};
}

std::vector<int32_t> Decoder::OwnOffsets(const Batch& batch) const {
  const Shard own = OwnTokens(batch.tokens());
  std::vector<int32_t> offsets;
  for (const int32_t offset : batch.offsets) {
    offsets.push_back(static_cast<int32_t>(std::clamp(offset - own.begin, int64_t{0}, own.numel)));
  }
  return offsets;
}

VocabularyArgs Decoder::Vocabulary(Context& ctx, ParamId weight, const OpLabel& label) const {
  return {.weight = weight, .vocabulary = spec_.vocab, .group = TensorGroup(ctx), .label = label};
}

ops::LinearCrossEntropyResult Decoder::Loss(Context& ctx, const Var& hidden,
                                            ops::LinearCrossEntropyArgs args) const {
  const OpLabel label = {"head"};
  const Var all = BlockTokens(part_).Enter(ctx, hidden, label);
  return VocabularyCrossEntropy(ctx, all, Vocabulary(ctx, head_, label), std::move(args));
}

DecoderOutput Decoder::Forward(Context& ctx, const Batch& batch,
                               const ForwardOptions& options) const {
  CADRE_CHECK(part_.stage_count() == 1, "a rank of {} stages", part_.stage_count());
  return ForwardStage(ctx, 0, {}, batch, options);
}

int64_t Decoder::handed_on(int stage) const {
  const LayerRange range = part_.LayersOf(stage, static_cast<int>(layers_.size()));
  return range.end > range.begin ? handed_on_by(range.end) : spec_.hidden;
}

int64_t Decoder::handed_on_by(int layer) const {
  const bool ladder =
      layer > 0 && spec_.layers[static_cast<size_t>(layer) - 1].wiring == Wiring::kLadder;
  return (ladder ? 2 : 1) * spec_.hidden;
}

// Without x the stream starts with the embedding.
ResidualStream Decoder::Enter(Context& ctx, const Var& x, const Batch& batch) const {
  if (!x.value.defined()) {
    return ResidualStream(VocabularyEmbedding(
        ctx, batch.ids, Vocabulary(ctx, embedding_, {"embedding"}), part_.sequence_parallel));
  }
  const std::vector<int64_t> sizes(static_cast<size_t>(x.value.dim(1) / spec_.hidden),
                                   spec_.hidden);
  if (sizes.size() == 1) return ResidualStream(x);
  return ResidualStream::Enter(ops::SplitColumns(ctx, x, sizes));
}

Var Decoder::Leave(Context& ctx, ResidualStream& stream, bool last) const {
  if (last) {
    return ops::RmsNorm(ctx, stream.Land(ctx), {norm_, static_cast<float>(spec_.norm_eps)});
  }
  const std::vector<Var> left = stream.Leave(ctx);
  return left.size() == 1 ? left[0] : ops::ConcatColumns(ctx, left);
}

Var Decoder::Exit(Context& ctx, const Var& hidden) const {
  ResidualStream stream = Enter(ctx, hidden, {});
  return Leave(ctx, stream, /*last=*/true);
}

DecoderOutput Decoder::ForwardLayers(Context& ctx, const LayerRange& layers, const Var& x,
                                     const Batch& batch, const ForwardOptions& options) const {
  const int count = static_cast<int>(layers_.size());
  CheckBatch(spec_, batch);
  CADRE_CHECK(part_.stage_count() == 1 && layers.begin >= 0 && layers.begin <= layers.end &&
                  layers.end <= count,
              "layers {} to {} of {}, {} stages", layers.begin, layers.end, count,
              part_.stage_count());
  CADRE_CHECK(layers.begin == 0 ? !x.value.defined() : x.value.dim(1) == handed_on_by(layers.begin),
              "layer {} takes {} columns", layers.begin, handed_on_by(layers.begin));
  DecoderOutput out;
  ResidualStream stream = Enter(ctx, x, batch);
  for (int i = layers.begin; i < layers.end; ++i) {
    ForwardLayer(ctx, i, batch, options, &stream, &out);
  }
  out.hidden = Leave(ctx, stream, layers.end == count);
  return out;
}

DecoderOutput Decoder::ForwardStage(Context& ctx, int stage, const Var& x, const Batch& batch,
                                    const ForwardOptions& options) const {
  CheckBatch(spec_, batch);
  CADRE_CHECK(part_.holds_stage(stage), "stage {} is another rank's", stage);
  CADRE_CHECK(GroupSize(TensorGroup(ctx)) == part_.tp &&
                  (!part_.sequence_parallel || batch.tokens() % part_.tp == 0),
              "{} tokens over {} of {} ranks", batch.tokens(), GroupSize(TensorGroup(ctx)),
              part_.tp);
  const int64_t context = GroupSize(ContextGroup(ctx));
  CADRE_CHECK(context == 1 ? !batch.context.has_value()
                           : batch.context.has_value() &&
                                 batch.context->offsets.back() == batch.tokens() * context,
              "{} tokens of a rank of {} that share sequences", batch.tokens(), context);
  DecoderOutput out;
  CADRE_CHECK((stage == 0) == !x.value.defined(), "stage {} takes what the one before gave", stage);
  ResidualStream stream = Enter(ctx, x, batch);
  const LayerRange range = part_.LayersOf(stage, static_cast<int>(layers_.size()));
  for (int i = range.begin; i < range.end; ++i) {
    ForwardLayer(ctx, i, batch, options, &stream, &out);
  }
  RecordForward(ctx, -1);
  out.hidden = Leave(ctx, stream, stage + 1 == part_.stage_count());
  RecordBackwardFrom(ctx, out.hidden, range.end - 1);
  return out;
}

}  // namespace cadre
