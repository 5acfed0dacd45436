// The decoder: embedding, layers of attention and feed-forward halves, final norm, output head. One
// Forward serves training, scoring, prefill and decode; the batch says whether attention is over
// itself or over paged blocks.
//
//   CADRE_ASSIGN_OR_RETURN(Decoder decoder, Decoder::Create(spec, {}, store));
//   store.Allocate(...);  ctx.parameters = &store;
//   DecoderOutput out = decoder.Forward(ctx, batch);
//   ops::LinearCrossEntropy(ctx, out.hidden, {.weight = decoder.head(), ...});   // training
//   ops::Logits(ctx, rows of out.hidden.value, decoder.head());                  // sampling
//
// Holds parameter ids, numbers and the rotary table: immutable after Create, callable from any
// thread with a Context of its own; it must outlive the tapes of its forwards.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/ops/linear_cross_entropy.h"
#include "core/ops/rope_table.h"
#include "core/parameters.h"
#include "core/status.h"
#include "core/tape.h"
#include "model/attention_block.h"
#include "model/batch.h"
#include "model/decoder_spec.h"
#include "model/mlp_block.h"
#include "model/residual.h"
#include "parallel/vocabulary.h"

namespace cadre {

struct DecoderOptions {
  // Patterns over Hugging Face tensor names of what is not trained.
  std::vector<std::string> frozen;
  // Positions that the rotary table covers; 0: the config's max_position_embeddings, at most 2^18.
  int64_t max_position = 0;
  ModelPart part;  // what this rank holds
};

// What a mixture layer's router chose for this rank's tokens, and by what.
struct RoutedTokens {
  int layer;
  Tensor tokens;      // i64 [T / tp]: each one's index in the step's batch
  Tensor ids;         // i32 [T / tp, top_k], ascending in each row
  Tensor logits;      // fp32 (f64) [T / tp, E]
  Tensor correction;  // fp32 (f64) [E]: added to the scores; undefined where nothing is
};

// Where the context has groups, the part must be this rank's in them.
struct ForwardOptions {
  moe::RouterOptions router;
  double dropout = 0.0;  // of both halves' outputs; the identity without a tape
  // i64 [T], where there is dropout or inspection: each token's index in the step's batch.
  Tensor global_tokens;
  // Called for every mixture layer, where set: for tests.
  std::function<void(const RoutedTokens&)> inspect_routing;
};

// What one mixture layer did, for metrics, balance and tests.
struct LayerRouting {
  int layer;
  Tensor ids;           // i32 [tokens, top_k] of this rank's tokens, ascending in each row
  int64_t dropped = 0;  // of ids, those over capacity
};

struct DecoderOutput {
  // [tokens, D] after the final norm, of this rank's run of the tokens or, without sequence
  // parallelism, of all; of a pipeline stage that is not the last what the next one takes, [tokens,
  // handed_on(stage)].
  Var hidden;
  std::vector<Var> router_losses;     // f64 [1] each, to be added to the loss
  std::vector<LayerRouting> routing;  // mixture layers, in order
};

class Decoder {
 public:
  // Registers every parameter in `store`, which must not be allocated yet. kInvalidArgument: a
  // frozen pattern that fits nothing, rotary numbers that are impossible.
  static absl::StatusOr<Decoder> Create(const DecoderSpec& spec, const DecoderOptions& options,
                                        ParameterStore& store);

  const DecoderSpec& spec() const { return spec_; }
  const ModelPart& part() const { return part_; }
  int64_t max_position() const { return rope_->positions(); }
  // [V, D]; the embedding's own where tied. kNoParam where the rank does not hold the last stage.
  ParamId head() const { return head_; }
  // How many uses of `id` give it a gradient in one forward of all the rank's stages.
  int uses(ParamId id) const { return id == embedding_ && id == head_ ? 2 : 1; }
  bool holds(int layer) const { return layers_[static_cast<size_t>(layer)].has_value(); }
  // kNoParam where the layer has no router bias to balance with or is another rank's.
  ParamId router_correction(int layer) const;

  // Over tensor-parallel ranks all have the same batch, whose tokens they divide evenly under
  // sequence parallelism; over context-parallel ranks each has its share (Batch::context). The rank
  // holds all layers.
  DecoderOutput Forward(Context& ctx, const Batch& batch, const ForwardOptions& options = {}) const;

  // What one pipeline stage, which the rank holds, does of it. x: the `hidden` of the stage before;
  // nothing for the first.
  DecoderOutput ForwardStage(Context& ctx, int stage, const Var& x, const Batch& batch,
                             const ForwardOptions& options = {}) const;

  // What some of the layers do of it, of a rank that holds them all (layer-major prefill, early
  // exits). x: the `hidden` of the layers before, [tokens, handed_on_by(layers.begin)]; nothing for
  // the first. Tokens may come in other runs than the layers before had them in: no bit changes.
  DecoderOutput ForwardLayers(Context& ctx, const LayerRange& layers, const Var& x,
                              const Batch& batch, const ForwardOptions& options = {}) const;
  // What some first layers left in their `hidden`, as if the model ended there: everything
  // landed, then the final norm. [tokens, D]
  Var Exit(Context& ctx, const Var& hidden) const;

  // Columns of that stage's `hidden`, where it is not the last: the stream's and, after a ladder
  // layer, those of an output that has not landed.
  int64_t handed_on(int stage) const;
  // The same of the layers before `layer`.
  int64_t handed_on_by(int layer) const;
  // The rank's run of n tokens between blocks.
  Shard OwnTokens(int64_t n) const;
  int stages() const { return part_.stage_count(); }

  // The loss of `hidden` (a Forward's) against args.targets [T], the same on every tensor-parallel
  // rank. args.weight is set here.
  ops::LinearCrossEntropyResult Loss(Context& ctx, const Var& hidden,
                                     ops::LinearCrossEntropyArgs args) const;

 private:
  struct Layer {
    ParamId input_norm, post_norm;
    std::variant<AttentionBlock, LatentAttentionBlock> attention;
    std::variant<MlpBlock, MoeBlock> mlp;
  };

  Decoder(const DecoderSpec& spec, const ModelPart& part) : spec_(spec), part_(part) {}
  absl::Status AddParameters(const DecoderOptions& options, ParameterStore& store);
  Layer MakeLayer(int index, ParamBuilder& params) const;
  void ForwardLayer(Context& ctx, int index, const Batch& batch, const ForwardOptions& options,
                    ResidualStream* stream, DecoderOutput* out) const;
  ResidualStream Enter(Context& ctx, const Var& x, const Batch& batch) const;
  // After the last of some layers: the final norm, or what the next ones take.
  Var Leave(Context& ctx, ResidualStream& stream, bool last) const;
  VocabularyArgs Vocabulary(Context& ctx, ParamId weight, const OpLabel& label) const;
  // What of a batch's sequences lies in this rank's tokens: [S + 1], from 0 to their count.
  std::vector<int32_t> OwnOffsets(const Batch& batch) const;
  void Inspect(Context& ctx, int index, const moe::Routing& routing,
               const ForwardOptions& options) const;
  // The output of a half, thinned out by dropout.
  PendingOutput Dropped(PendingOutput half, int site, const ForwardOptions& options) const;

  DecoderSpec spec_;
  ModelPart part_;
  std::shared_ptr<const ops::RopeTable> rope_;
  ParamId embedding_ = kNoParam, norm_ = kNoParam, head_ = kNoParam;
  std::vector<std::optional<Layer>> layers_;  // of the whole model; those that the rank holds
};

}  // namespace cadre
