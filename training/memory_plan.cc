#include "training/memory_plan.h"

#include <unistd.h>

#include <algorithm>
#include <map>

#include "core/counted.h"
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

// What the layers of a pipeline's rank save for their backward passes.
struct SavedActivations {
  int64_t most = 0;    // at the fullest moment of a step
  int64_t layer = 0;   // of one microbatch in one layer, on average
  int64_t widest = 0;  // in the widest
  int64_t layers = 0;
};

// The whole buckets that a rank has for a while where it keeps shards.
struct WholeBuckets {
  int64_t layer_gradients = 0;  // of the layer that its backward pass is in
  int64_t reductions = 0;       // under way at once, at most
  // Gradients of what lies outside the layers; weights of the layer that computes and of those that
  // come next.
  int64_t others = 0;
};

WholeBuckets WholeBucketsOf(const PlanArgs& args, const ParameterStore& store, int rank) {
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
  WholeBuckets whole{.reductions = static_cast<int64_t>(GradientReducer::kMaxInFlight) * largest};
  int64_t layer_weights = 0;
  for (const auto& [layer, bytes] : gradients) {
    if (layer < 0) whole.others += bytes;
    if (layer >= 0) whole.layer_gradients = std::max(whole.layer_gradients, bytes);
  }
  for (const auto& [layer, bytes] : weights) layer_weights = std::max(layer_weights, bytes);
  whole.others += layer_weights * (1 + args.config.parallel().zero_prefetch());
  return whole;
}

// What a backward pass adds: as many layers as are done have let go of what they saved, and their
// gradients are on their way.
int64_t BackwardBytes(const WholeBuckets& whole, const SavedActivations& saved) {
  int64_t most = 0;
  for (int64_t done = 0; done < saved.layers; ++done) {
    const int64_t reduced = std::min(done * whole.layer_gradients, whole.reductions);
    most = std::max(most, whole.layer_gradients + reduced - done * saved.layer);
  }
  return most;
}

RankTokens MicrobatchTokens(const PlanArgs& args) {
  const auto batch = static_cast<int64_t>(args.config.micro_batch_size());
  return TokensOfRank(args.layout, batch * args.config.data().seq_len());
}

bool HoldsLast(const PlanArgs& args, int place) {
  const ScheduleSpec pipeline = PipelineOf(args.layout);
  return RankOfStage(pipeline, pipeline.stages() - 1) == place;
}

// A chunk of logits with its gradient.
int64_t LogitBytes(const PlanArgs& args) {
  const int64_t vocab = args.spec.vocab;
  const int64_t rows = std::min(MicrobatchTokens(args).all,
                                std::max<int64_t>(64, (int64_t{64} << 20) / (vocab * 4)));
  const int64_t columns = (vocab + args.layout.tp - 1) / args.layout.tp;
  return rows * columns * (4 + static_cast<int64_t>(SizeOf(args.compute)));
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
  plan->optimizer = OptimizerStateBytes(args.config.optimizer(), store, shards.owned);
  plan->packed_weights = PackedBytes(args, store, PartOf(args.layout, rank).last());
  if (!args.config.checkpoint().async()) return;
  plan->snapshot = SnapshotBytes(args.config.optimizer(), store, shards.sole);
  plan->workspace += WriteBufferBytes(store);
}

// Bytes of each stage that `place` of the pipeline holds, of one microbatch; 0 for others.
std::vector<int64_t> StageBytes(const PlanArgs& args, int place, SavedActivations* saved) {
  const ScheduleSpec pipeline = PipelineOf(args.layout);
  const RankTokens tokens = MicrobatchTokens(args);
  std::vector<int64_t> bytes(args.layout.stage_layers.size());
  size_t next = 0;
  for (size_t stage = 0; stage < bytes.size(); ++stage) {
    const bool here = RankOfStage(pipeline, static_cast<int>(stage)) == place;
    for (int i = 0; i < args.layout.stage_layers[stage]; ++i, ++next) {
      if (!here) continue;
      const LayerSpec& layer = args.spec.layers[next];
      const int64_t each =
          Bytes(SavedElements(args.spec, layer, args.layout, tokens), args.compute);
      bytes[stage] += each;
      saved->layer += each;
      saved->widest = std::max(saved->widest, each);
      ++saved->layers;
    }
  }
  if (saved->layers > 0) saved->layer /= saved->layers;
  // The final norm's input, and its output of all tokens.
  if (HoldsLast(args, place)) {
    bytes.back() += Bytes((tokens.own + tokens.all) * args.spec.hidden, args.compute);
  }
  return bytes;
}

// A stage's are there from its forward until its gradients of weights are done.
SavedActivations SavedAt(const PlanArgs& args, const Schedule& schedule, int place) {
  SavedActivations saved;
  const std::vector<int64_t> bytes = StageBytes(args, place, &saved);
  int64_t now = 0;
  for (const Action& action : schedule.ranks[static_cast<size_t>(place)]) {
    const bool pair = action.kind == ActionKind::kOverlappedPair;
    if (pair || action.kind == ActionKind::kForward)
      now += bytes[static_cast<size_t>(action.stage)];
    saved.most = std::max(saved.most, now);
    if (pair) now -= bytes[static_cast<size_t>(action.backward_stage)];
    if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardWeight) {
      now -= bytes[static_cast<size_t>(action.stage)];
    }
  }
  return saved;
}

void AddActivations(const PlanArgs& args, const ParameterStore& store,
                    const SavedActivations& saved, int rank, MemoryPlan* plan) {
  plan->activations = saved.most;
  // The widest layer's gradients on their way down, and the table of rotary positions. The logits
  // are gone before the backward pass is in a layer.
  const WholeBuckets whole = WholeBucketsOf(args, store, rank);
  const int64_t logits =
      HoldsLast(args, CoordinatesOf(args.layout, rank).pp) ? LogitBytes(args) : 0;
  plan->workspace += saved.widest / 2 + whole.others +
                     std::max(logits, BackwardBytes(whole, saved)) +
                     Bytes(args.config.data().seq_len() * args.spec.rope.rotary_dim, DType::kF32);
}

MemoryPlan PlanWith(const PlanArgs& args, const ParameterStore& store,
                    const SavedActivations& saved, int rank) {
  MemoryPlan plan{.data = args.measured.data, .program = args.measured.program};
  AddState(args, store, rank, &plan);
  AddActivations(args, store, saved, rank, &plan);
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
  CADRE_ASSIGN_OR_RETURN(const Schedule schedule, MakeSchedule(PipelineOf(args.layout)));
  const SavedActivations saved = SavedAt(args, schedule, CoordinatesOf(args.layout, rank).pp);
  return PlanWith(args, store, saved, rank);
}

absl::StatusOr<std::vector<RanksAlike>> PlanRanks(const PlanArgs& args) {
  std::vector<RanksAlike> alike;
  std::map<std::pair<int, bool>, ParameterStore> stores;
  CADRE_ASSIGN_OR_RETURN(const Schedule schedule, MakeSchedule(PipelineOf(args.layout)));
  std::map<int, SavedActivations> saved;  // by place in the pipeline
  for (int rank = 0; rank < args.layout.world(); ++rank) {
    // Ranks with other experts, heads or columns hold as many of them. Rows of the vocabulary are
    // what may differ, in the last rank.
    const Coordinates place = CoordinatesOf(args.layout, rank);
    auto [found, fresh] = stores.try_emplace({place.pp, place.tp == args.layout.tp - 1});
    if (fresh) {
      CADRE_ASSIGN_OR_RETURN(found->second, BucketsOfRank(args, rank));
    }
    if (!saved.contains(place.pp)) saved[place.pp] = SavedAt(args, schedule, place.pp);
    const MemoryPlan plan = PlanWith(args, found->second, saved[place.pp], rank);
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
      "model: {:.3g} parameters; weights {}, gradients {} and optimizer state {}, times {}, "
      "are {:.1f} GiB, this machine has {:.1f}",
      static_cast<double>(CountParameters(args.spec).total), FormatBytes(plan.weights),
      FormatBytes(plan.gradients), FormatBytes(plan.optimizer), Counted(args.ranks_on_host, "rank"),
      needed / (1 << 30), memory / (1 << 30));
}

}  // namespace cadre
