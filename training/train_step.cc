#include "training/train_step.h"

#include <algorithm>
#include <numeric>

#include "core/ops/elementwise.h"
#include "core/trace.h"

namespace cadre {
namespace {

// Sums of f64 [1] values.
double Value(const Var& scalar) { return *scalar.value.data<double>(); }

// Each token's index in the step's batch, which keys dropout's draws; undefined without dropout.
Tensor GlobalTokens(Context& ctx, double dropout, const Batch& batch, int64_t first_token) {
  if (dropout == 0) return {};
  Tensor tokens = ctx.Empty({batch.tokens()}, DType::kI64);
  const std::span<int64_t> global = tokens.span<int64_t>();
  if (batch.context.has_value()) {
    std::ranges::transform(batch.context->tokens, global.begin(),
                           [&](int32_t token) { return first_token + token; });
  } else {
    std::iota(global.begin(), global.end(), first_token);
  }
  return tokens;
}

// Of the batch's tokens.
Tensor Targets(Context& ctx, const Batch& batch, const PackedBatch& packed) {
  if (!batch.context.has_value()) {
    return Tensor::Of<int32_t>(*ctx.allocator, {batch.tokens()}, packed.targets);
  }
  Tensor targets = ctx.Empty({batch.tokens()}, DType::kI32);
  std::ranges::transform(batch.context->tokens, targets.data<int32_t>(),
                         [&](int32_t token) { return packed.targets[static_cast<size_t>(token)]; });
  return targets;
}

}  // namespace

Batch ToBatch(Context& ctx, const PackedBatch& packed) {
  const Shape shape = {static_cast<int64_t>(packed.ids.size())};
  Batch whole{.ids = Tensor::Of<int32_t>(*ctx.allocator, shape, packed.ids),
              .positions = Tensor::Of<int32_t>(*ctx.allocator, shape, packed.positions),
              .offsets = packed.offsets};
  const Communicator* group = ContextGroup(ctx);
  if (group == nullptr) return whole;
  return ShareOf(*ctx.allocator, whole, packed.row_offsets, group->size(), group->rank());
}

absl::StatusOr<StepBatches> ReadStep(SampleStream& stream, int64_t step, const StepShape& shape) {
  StepBatches batches;
  const int64_t own = shape.global / shape.ranks, first = step * shape.global + shape.rank * own;
  for (int64_t begin = first; begin < first + own; begin += shape.micro) {
    PackedBatch& packed = batches.micro.emplace_back();
    for (int64_t i = begin; i < std::min(begin + shape.micro, first + own); ++i) {
      batches.samples.push_back(i);
      CADRE_RETURN_IF_ERROR(stream.Append(i, &packed));
    }
    batches.tokens += static_cast<int64_t>(packed.ids.size());
    batches.loss_tokens += packed.loss_tokens;
    batches.sequences += static_cast<int64_t>(packed.offsets.size()) - 1;
  }
  batches.microbatches = static_cast<int64_t>(batches.micro.size());
  // Every sample has as many tokens.
  batches.first_token = batches.tokens * shape.rank;
  return batches;
}

TrainStep::TrainStep(Model& model, const config::TrainConfig& config, int64_t micro_batches)
    : model_(model), config_(config) {
  ParameterStore& store = model.parameters();
  const ParamId head = model.decoder().head();
  const bool tied = model.spec().tied;
  for (ParamId id = 0; id < store.size(); ++id) {
    const int uses = tied && id == head ? 2 : 1;
    if (store.WantsGradient(id)) store.ExpectReports(id, static_cast<int>(micro_batches) * uses);
  }
  const auto& layers = model.spec().layers;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].is_moe)
      loads_.push_back({static_cast<int>(i), moe::ExpertLoad(layers[i].moe.router.experts)});
  }
}

Tensor TrainStep::One(Context& ctx) const {
  Tensor one = ctx.Empty({1}, DType::kF64);
  *one.data<double>() = 1.0;
  return one;
}

void TrainStep::RunMicroBatch(Context& ctx, const StepBatches& batches, const PackedBatch& packed,
                              int64_t first_token, StepLosses* losses) {
  Tape tape(&ops::Accumulate);
  ctx.tape = &tape;
  const config::MoeTrainingConfig& moe = config_.moe();
  const bool per_sequence = moe.balance_scope() == config::BALANCE_SCOPE_SEQUENCE;
  const auto scopes = static_cast<double>(per_sequence ? batches.sequences : batches.microbatches);
  const Batch batch = ToBatch(ctx, packed);
  ForwardOptions options{
      .router = {.balance = moe.balance_loss_coef() / scopes,
                 .per_sequence = per_sequence,
                 .z = moe.router_z_loss_coef() / static_cast<double>(batches.tokens)},
      .dropout = config_.dropout(),
      .global_tokens = GlobalTokens(ctx, config_.dropout(), batch, first_token)};
  {
    TraceScope scope(ctx.trace, "forward");
    DecoderOutput out = model_.decoder().Forward(ctx, batch, options);
    auto result = model_.decoder().Loss(
        ctx, out.hidden,
        {.targets = Targets(ctx, batch, packed),
         .scale = 1.0 / static_cast<double>(std::max<int64_t>(1, batches.loss_tokens)),
         .z_coefficient = config_.z_loss_coef()});
    losses->cross_entropy += result.cross_entropy;
    losses->z_loss += result.z_loss;
    tape.Seed(result.loss.slot, One(ctx));
    for (const Var& loss : out.router_losses) {
      losses->router += Value(loss);
      tape.Seed(loss.slot, One(ctx));
    }
    for (size_t i = 0; i < out.routing.size(); ++i) loads_[i].load.Add(out.routing[i].ids);
  }
  TraceScope scope(ctx.trace, "backward");
  tape.Backward(ctx);
  ctx.tape = nullptr;
}

StepLosses TrainStep::Run(Context& ctx, const StepBatches& batches) {
  model_.parameters().ZeroGradients();
  for (LayerLoad& layer : loads_) layer.load.Clear();
  StepLosses losses;
  int64_t first_token = batches.first_token;
  for (const PackedBatch& packed : batches.micro) {
    RunMicroBatch(ctx, batches, packed, first_token, &losses);
    first_token += static_cast<int64_t>(packed.ids.size());
  }
  return losses;
}

std::vector<int64_t> TrainStep::ExpertCounts() const {
  std::vector<int64_t> counts;
  for (const LayerLoad& layer : loads_) {
    counts.insert(counts.end(), layer.load.counts().begin(), layer.load.counts().end());
  }
  return counts;
}

void TrainStep::SetExpertCounts(std::span<const int64_t> counts) {
  for (LayerLoad& layer : loads_) {
    const std::span<int64_t> own = layer.load.counts();
    std::copy_n(counts.begin(), own.size(), own.begin());
    counts = counts.subspan(own.size());
  }
}

void TrainStep::UpdateRouterBiases(Context& ctx) {
  const double rate = config_.moe().router_bias_update_rate();
  if (rate == 0) return;
  for (const LayerLoad& layer : loads_) {
    const ParamId correction = model_.decoder().router_correction(layer.layer);
    if (correction != kNoParam) moe::UpdateRouterBias(ctx, correction, layer.load.counts(), rate);
  }
}

double TrainStep::ExpertLoadMaxOverMean() const {
  double worst = 0;
  for (const LayerLoad& layer : loads_) worst = std::max(worst, layer.load.MaxOverMean());
  return worst;
}

absl::StatusOr<double> EvaluateLoss(Context& ctx, const Model& model, SampleStream& stream,
                                    const EvaluationPart& part) {
  CADRE_ASSIGN_OR_RETURN(const int64_t tokens, stream.LossTokens(0, part.count));
  if (tokens == 0) return 0.0;
  double loss = 0;
  for (int64_t first = 0; first < part.count; first += part.ranks * part.micro) {
    PackedBatch packed;
    for (int64_t i = 0; i < part.micro; ++i) {
      const int64_t row = first + part.rank * part.micro + i;
      if (row >= part.count && part.ranks == 1) break;
      // Ranks that share experts meet in every microbatch, with equally many tokens.
      CADRE_RETURN_IF_ERROR(stream.Append(row % part.count, &packed));
      if (row >= part.count) {
        std::fill(packed.targets.begin() + *(packed.row_offsets.rbegin() + 1), packed.targets.end(),
                  -1);
      }
    }
    const Batch batch = ToBatch(ctx, packed);
    DecoderOutput out = model.decoder().Forward(ctx, batch);
    loss += model.decoder()
                .Loss(ctx, out.hidden,
                      {.targets = Targets(ctx, batch, packed),
                       .scale = 1.0 / static_cast<double>(tokens)})
                .cross_entropy;
  }
  return loss;
}

}  // namespace cadre
