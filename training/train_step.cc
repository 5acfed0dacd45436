#include "training/train_step.h"

#include <algorithm>
#include <numeric>

#include "core/ops/elementwise.h"
#include "core/trace.h"
#include "parallel/row_parallel.h"
#include "parallel/schedule.h"

namespace cadre {
namespace {

// Sums of f64 [1] values.
double Value(const Var& scalar) { return *scalar.value.data<double>(); }

// Each token's index in the step's batch, which keys dropout's draws; undefined unless needed.
Tensor GlobalTokens(Context& ctx, bool needed, const Batch& batch, int64_t first_token) {
  if (!needed) return {};
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

Tensor One(Context& ctx) {
  Tensor one = ctx.Empty({1}, DType::kF64);
  *one.data<double>() = 1.0;
  return one;
}

Schedule ScheduleOf(const Layout& layout) {
  auto schedule = MakeSchedule(PipelineOf(layout));
  CADRE_CHECK(schedule.ok(), "{}", Message(schedule.status()));
  return *std::move(schedule);
}

}  // namespace

PipelineExecutor::Options PipelineOptions(const Context& ctx, const Model& model,
                                          const PackedBatch& packed) {
  const ParallelGroups* groups = ctx.groups;
  const auto share = static_cast<int64_t>(packed.ids.size()) / GroupSize(ContextGroup(ctx));
  const int64_t tokens = model.decoder().OwnTokens(share).numel;
  std::vector<Shape> shapes;
  for (int stage = 0; stage + 1 < model.decoder().stages(); ++stage) {
    shapes.push_back({tokens, model.decoder().handed_on(stage)});
  }
  return {.group = groups == nullptr ? nullptr : groups->pp,
          .shapes = std::move(shapes),
          .dtype = model.dtype(),
          .accumulate = &ops::Accumulate};
}

Tensor Targets(Context& ctx, const Batch& batch, const PackedBatch& packed) {
  if (!batch.context.has_value()) {
    return Tensor::Of<int32_t>(*ctx.allocator, {batch.tokens()}, packed.targets);
  }
  Tensor targets = ctx.Empty({batch.tokens()}, DType::kI32);
  std::ranges::transform(batch.context->tokens, targets.data<int32_t>(),
                         [&](int32_t token) { return packed.targets[static_cast<size_t>(token)]; });
  return targets;
}

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

TrainStep::TrainStep(Model& model, const config::TrainConfig& config, const Layout& layout)
    : model_(model), config_(config), schedule_(ScheduleOf(layout)) {
  model.parameters().ExpectPasses(layout.microbatches);
  const auto& layers = model.spec().layers;
  for (int i = 0; i < static_cast<int>(layers.size()); ++i) {
    const LayerSpec& layer = layers[static_cast<size_t>(i)];
    if (layer.is_moe && model.decoder().holds(i)) {
      loads_.push_back({i, moe::ExpertLoad(layer.moe.router.experts)});
    }
  }
}

ForwardOptions TrainStep::OptionsOf(const StepBatches& batches) const {
  const config::MoeTrainingConfig& moe = config_.moe();
  const bool per_sequence = moe.balance_scope() == config::BALANCE_SCOPE_SEQUENCE;
  const auto scopes = static_cast<double>(per_sequence ? batches.sequences : batches.microbatches);
  return {.router = {.balance = moe.balance_loss_coef() / scopes,
                     .per_sequence = per_sequence,
                     .z = moe.router_z_loss_coef() / static_cast<double>(batches.tokens),
                     .capacity_factor = moe.capacity_factor()},
          .dropout = config_.dropout()};
}

void TrainStep::SeedLoss(Context& ctx, const StepBatches& batches, const Tensor& targets,
                         const Var& hidden, StepLosses* losses) {
  auto result = model_.decoder().Loss(
      ctx, hidden,
      {.targets = targets,
       .scale = 1.0 / static_cast<double>(std::max<int64_t>(1, batches.loss_tokens)),
       .z_coefficient = config_.z_loss_coef()});
  losses->cross_entropy += result.cross_entropy;
  losses->z_loss += result.z_loss;
  ctx.tape->Seed(result.loss.slot, One(ctx));
}

Var TrainStep::RunStage(Context& ctx, const StepBatches& batches, const StageInput& in,
                        StepLosses* losses) {
  const auto index = static_cast<size_t>(in.microbatch);
  const PackedBatch& packed = batches.micro[index];
  ForwardOptions options = OptionsOf(batches);
  // Every microbatch has as many tokens.
  const int64_t first = batches.first_token + static_cast<int64_t>(index * packed.ids.size());
  const Batch batch = ToBatch(ctx, packed);
  options.global_tokens = GlobalTokens(ctx, options.dropout != 0 || inspect_routing_, batch, first);
  if (inspect_routing_) {
    options.inspect_routing = [this, &ctx](const RoutedTokens& routed) {
      inspect_routing_(ctx.step, routed);
    };
  }
  const DecoderOutput out =
      model_.decoder().ForwardStage(ctx, in.stage, in.activation, batch, options);
  for (const Var& loss : out.router_losses) {
    losses->router += Value(loss);
    ctx.tape->Seed(loss.slot, One(ctx));
  }
  for (const LayerRouting& routing : out.routing) {
    std::ranges::find(loads_, routing.layer, &LayerLoad::layer)->load.Add(routing.ids);
    dropped_ += routing.dropped;
  }
  const bool last = in.stage + 1 == schedule_.spec.stages();
  if (last) SeedLoss(ctx, batches, Targets(ctx, batch, packed), out.hidden, losses);
  return out.hidden;
}

absl::StatusOr<StepLosses> TrainStep::Run(Context& ctx, const StepBatches& batches) {
  CADRE_CHECK(static_cast<int>(batches.micro.size()) == schedule_.spec.microbatches,
              "{} microbatches for a schedule of {}", batches.micro.size(),
              schedule_.spec.microbatches);
  model_.parameters().ZeroGradients();
  for (LayerLoad& layer : loads_) layer.load.Clear();
  dropped_ = 0;
  StepLosses losses;
  PipelineExecutor executor(PipelineOptions(ctx, model_, batches.micro.front()));
  CADRE_RETURN_IF_ERROR(executor.Run(
      ctx, schedule_, [&](const StageInput& in) { return RunStage(ctx, batches, in, &losses); }));
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

}  // namespace cadre
