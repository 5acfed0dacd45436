#include "training/memory_plan.h"

#include <unistd.h>

#include <algorithm>
#include <map>

#include "core/host_allocator.h"
#include "core/progress.h"
#include "model/decoder.h"
#include "model/model_cost.h"
#include "parallel/collectives.h"
#include "parallel/mesh.h"
#include "parallel/schedule.h"
#include "parallel/shard.h"
#include "parallel/shm_segment.h"
#include "training/checkpoint.h"
#include "training/layer_memory.h"
#include "training/optimizer.h"
#include "training/training_ranks.h"

namespace cadre {
namespace {

int64_t Bytes(int64_t elements, DType dtype) {
  return elements * static_cast<int64_t>(SizeOf(dtype));
}

// The rank's parameters, in buckets without memory.
absl::StatusOr<ParameterStore> BucketsOfRank(const PlanArgs& args, int rank) {
  DecoderOptions options{.max_position = 1, .part = PartOf(args.layout, rank)};
  const auto& frozen = args.config.frozen_parameters();
  options.frozen.assign(frozen.begin(), frozen.end());
  ParameterStore store;
  CADRE_RETURN_IF_ERROR(Decoder::Create(args.spec, options, store).status());
  store.MakeBuckets(args.compute);
  return store;
}

// A rank's place among those that sum a bucket's gradients.
struct Place {
  int ranks = 1, rank = 0;
};
Place PlaceIn(const Layout& layout, Axis axis, int rank) {
  const std::vector<int> group = ShardRanks(layout, axis, rank);
  if (group.empty()) return {};
  return {.ranks = static_cast<int>(group.size()),
          .rank = static_cast<int>(std::ranges::find(group, rank) - group.begin())};
}

struct BucketShards {
  std::vector<Shard> owned;  // whose optimizer state the rank has
  std::vector<Shard> sole;   // that it alone writes into checkpoints
};

BucketShards ShardsOfRank(const ParameterStore& store, const Layout& layout, int rank) {
  BucketShards shards;
  std::map<Axis, Place> places;
  for (const ParamBucket& bucket : store.buckets()) {
    const Axis axis = ReductionAxis(bucket);
    if (!places.contains(axis)) places[axis] = PlaceIn(layout, axis, rank);
    const Shard mine = ShardOf(bucket.numel, places[axis].ranks, places[axis].rank);
    shards.sole.push_back(SoleShard(layout, rank, bucket));
    const bool cut = layout.zero_stage >= 1 && bucket.trainable;
    shards.owned.push_back(cut ? mine : Shard{0, bucket.numel});
  }
  return shards;
}

// Matrices in panels. The input embedding is looked up, not multiplied, where it is not the head,
// too; f64 runs on plain weights.
int64_t PackedBytes(const PlanArgs& args, const ParameterStore& store, bool last) {
  if (args.compute == DType::kF64) return 0;
  // ZeRO-3 packs each matrix when it is used.
  const bool kept = args.layout.zero_stage < 3 || args.layout.world() == 1;
  int64_t bytes = 0;
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    const bool looked_up = !(args.spec.tied && last) && spec.name == "model.embed_tokens.weight";
    if (spec.shape.rank() < 2 || looked_up) continue;
    const int64_t panels = Bytes(spec.shape.numel(), args.compute);
    bytes = kept ? bytes + 2 * panels : std::max(bytes, panels);
  }
  return bytes;
}

// The whole buckets that a rank has for a while where it keeps shards: gradients of the layer that
// its backward pass is in, of what lies outside the layers and of reductions under way; weights of
// the layer that computes and of those that come next.
int64_t WholeBuckets(const PlanArgs& args, const ParameterStore& store, int rank) {
  std::map<int, int64_t> gradients, weights;  // by layer
  int64_t largest = 0;
  for (const ParamBucket& bucket : store.buckets()) {
    const BucketParts parts = PartsOf(args.layout, rank, bucket);
    if (parts.gradients.numel < bucket.numel && bucket.trainable) {
      const int64_t bytes = Bytes(bucket.numel, bucket.gradient_dtype());
      gradients[bucket.layer] += bytes;
      largest = std::max(largest, bytes);
    }
    if (parts.weights.numel < bucket.numel) {
      weights[bucket.layer] += Bytes(bucket.numel, bucket.dtype);
    }
  }
  int64_t whole = static_cast<int64_t>(GradientReducer::kMaxInFlight) * largest;
  int64_t layer_gradients = 0, layer_weights = 0;
  for (const auto& [layer, bytes] : gradients) {
    if (layer < 0) whole += bytes;
    if (layer >= 0) layer_gradients = std::max(layer_gradients, bytes);
  }
  for (const auto& [layer, bytes] : weights) layer_weights = std::max(layer_weights, bytes);
  return whole + layer_gradients + layer_weights * (1 + args.config.parallel().zero_prefetch());
}

void AddState(const PlanArgs& args, const ParameterStore& store, int rank, MemoryPlan* plan) {
  const BucketShards shards = ShardsOfRank(store, args.layout, rank);
  for (const ParamBucket& bucket : store.buckets()) {
    const BucketParts parts = PartsOf(args.layout, rank, bucket);
    plan->weights += Bytes(parts.weights.numel, bucket.dtype);
    if (bucket.trainable) {
      plan->gradients += Bytes(parts.gradients.numel, bucket.gradient_dtype());
    }
  }
  plan->workspace += WholeBuckets(args, store, rank);
  plan->optimizer = OptimizerStateBytes(args.config.optimizer(), store, shards.owned);
  plan->packed_weights = PackedBytes(args, store, PartOf(args.layout, rank).last());
  if (!args.config.checkpoint().async()) return;
  plan->snapshot = SnapshotBytes(args.config.optimizer(), store, shards.sole);
  plan->workspace += WriteBufferBytes(store);
}

// Layers of the stages that the rank holds.
std::vector<const LayerSpec*> LayersOfRank(const PlanArgs& args, int place) {
  const ScheduleSpec pipeline = PipelineOf(args.layout);
  std::vector<const LayerSpec*> layers;
  size_t next = 0;
  for (int stage = 0; stage < args.layout.stages(); ++stage) {
    for (int i = 0; i < args.layout.stage_layers[static_cast<size_t>(stage)]; ++i, ++next) {
      if (RankOfStage(pipeline, stage) == place) layers.push_back(&args.spec.layers[next]);
    }
  }
  return layers;
}

// One microbatch's in all layers of the rank, times how many microbatches of them are in flight:
// the schedule counts them by stage, of which a rank may hold several.
void AddActivations(const PlanArgs& args, int place, MemoryPlan* plan) {
  const DecoderSpec& spec = args.spec;
  const ScheduleSpec pipeline = PipelineOf(args.layout);
  const auto batch = static_cast<int64_t>(args.config.micro_batch_size());
  const RankTokens tokens = TokensOfRank(args.layout, batch * args.config.data().seq_len());
  int64_t saved = 0, widest = 0;
  for (const LayerSpec* layer : LayersOfRank(args, place)) {
    const int64_t elements = SavedElements(spec, *layer, args.layout, tokens);
    saved += elements;
    widest = std::max(widest, elements);
  }
  const bool last = RankOfStage(pipeline, pipeline.stages() - 1) == place;
  // The final norm's input, and its output of all tokens.
  if (last) saved += (tokens.own + tokens.all) * spec.hidden;
  const int64_t in_flight = MostInFlight(pipeline, place);
  plan->activations = Bytes(saved, args.compute) * in_flight / pipeline.stages_per_rank;
  // The widest layer's gradients on their way down, a chunk of logits with its gradient, and the
  // table of rotary positions.
  plan->workspace += Bytes(widest / 2, args.compute);
  if (last) {
    const int64_t rows =
        std::min(tokens.all, std::max<int64_t>(64, (int64_t{64} << 20) / (spec.vocab * 4)));
    const int64_t columns = (spec.vocab + args.layout.tp - 1) / args.layout.tp;
    plan->workspace += rows * columns * (4 + static_cast<int64_t>(SizeOf(args.compute)));
  }
  plan->workspace += Bytes(args.config.data().seq_len() * spec.rope.rotary_dim, DType::kF32);
}

MemoryPlan PlanWith(const PlanArgs& args, const ParameterStore& store, int rank) {
  MemoryPlan plan{.data = args.measured.data, .program = args.measured.program};
  AddState(args, store, rank, &plan);
  AddActivations(args, CoordinatesOf(args.layout, rank).pp, &plan);
  plan.idle = plan.tensors() / static_cast<int64_t>(HostAllocator::kIdleShare);
  if (args.layout.world() > 1) {
    plan.communication = ShmSegment::BytesPerRank(args.ranks_on_host) +
                         StagingBytes(args.layout.tp * args.layout.cp * args.layout.dp);
  }
  return plan;
}

}  // namespace

std::vector<std::pair<std::string_view, int64_t>> MemoryPlan::Parts() const {
  return {{"weights", weights},
          {"gradients", gradients},
          {"optimizer", optimizer},
          {"packed weights", packed_weights},
          {"checkpoint snapshot", snapshot},
          {"activations", activations},
          {"workspace", workspace},
          {"communication", communication},
          {"idle blocks", idle},
          {"data", data},
          {"program", program}};
}

std::string MemoryPlan::ToString() const {
  std::string text = FormatBytes(total()) + " planned:";
  for (const auto& [name, bytes] : Parts()) {
    text += fmt::format("{} {} {}", text.ends_with(':') ? "" : ",", name, FormatBytes(bytes));
  }
  return text;
}

absl::StatusOr<MemoryPlan> PlanRank(const PlanArgs& args, int rank) {
  CADRE_ASSIGN_OR_RETURN(const ParameterStore store, BucketsOfRank(args, rank));
  return PlanWith(args, store, rank);
}

absl::StatusOr<std::vector<RanksAlike>> PlanRanks(const PlanArgs& args) {
  std::vector<RanksAlike> alike;
  std::map<std::pair<int, bool>, ParameterStore> stores;
  for (int rank = 0; rank < args.layout.world(); ++rank) {
    // Ranks with other experts, heads or columns hold as many of them. Rows of the vocabulary are
    // what may differ, in the last rank.
    const Coordinates place = CoordinatesOf(args.layout, rank);
    auto [found, fresh] = stores.try_emplace({place.pp, place.tp == args.layout.tp - 1});
    if (fresh) {
      CADRE_ASSIGN_OR_RETURN(found->second, BucketsOfRank(args, rank));
    }
    const MemoryPlan plan = PlanWith(args, found->second, rank);
    const auto same = std::ranges::find(alike, plan, &RanksAlike::plan);
    if (same != alike.end()) {
      same->ranks.push_back(rank);
    } else {
      alike.push_back({{rank}, plan});
    }
  }
  return alike;
}

absl::Status CheckFits(const PlanArgs& args, int rank) {
  CADRE_ASSIGN_OR_RETURN(const MemoryPlan plan, PlanRank(args, rank));
  const double memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  const int64_t each = plan.weights + plan.gradients + plan.optimizer;
  const double needed = static_cast<double>(each) * args.ranks_on_host;
  if (needed <= memory) return absl::OkStatus();
  return InvalidArgument(
      "model: {:.3g} parameters; weights {}, gradients {} and optimizer state {}, times {} ranks, "
      "are {:.1f} GiB, this machine has {:.1f}",
      static_cast<double>(CountParameters(args.spec).total), FormatBytes(plan.weights),
      FormatBytes(plan.gradients), FormatBytes(plan.optimizer), args.ranks_on_host,
      needed / (1 << 30), memory / (1 << 30));
}

}  // namespace cadre
