#include "serving/follower.h"

#include <algorithm>

#include "core/host_allocator.h"
#include "core/ops/gemm.h"
#include "core/trace.h"
#include "memory/kv_block_pool.h"
#include "serving/expert_load.h"
#include "serving/kv_plan.h"
#include "serving/step_forward.h"

namespace cadre {
namespace {

class Follower {
 public:
  Follower(ModelHome& home, const EngineOptions& options, ServingRanks& ranks, KvPlan kv)
      : home_(home),
        options_(options),
        ranks_(ranks),
        pool_(allocator_, std::move(kv.layouts), kv.blocks),
        load_(home.model()->spec()),
        bounds_({.vocabulary = home.model()->spec().vocab,
                 .positions = home.model()->decoder().max_position(),
                 .blocks = pool_.blocks(),
                 .block_size = pool_.block_size(),
                 .layers = pool_.layers()}) {
    packed_ = std::move(home.model()->packed());
    ctx_ = {.allocator = &allocator_,
            .threads = options.threads,
            .parameters = &home.model()->parameters(),
            .packed = &packed_,
            .trace = options.trace,
            .groups = ranks.groups()};
  }

  // This rank's ridge counts as much as rank 0's, which alone plans with the result.
  absl::Status MeasureBudget() {
    return ChooseTokenBudget(ctx_, *home_.model(), BudgetOptionsOf(options_)).status();
  }
  // All but kStop.
  absl::Status Do(const StepMessage& message) {
    switch (message.kind) {
      case StepKind::kRun:
        return RunStep(message);
      case StepKind::kReport:
        return ranks_.SumCounts(load_.counts()).status();
      case StepKind::kSleep:
        return GiveUpMemory(message.sleep_level);
      case StepKind::kWake:
        return Wake();
      case StepKind::kStop:
        break;
    }
    CADRE_CHECK(false, "a message of kind {}", static_cast<int>(message.kind));
  }

 private:
  absl::Status CheckMessage(const StepMessage& message) {
    if (sleep_level_ > 0) {
      return DataLoss("step {}: this rank sleeps at level {}", message.number, sleep_level_);
    }
    const auto version = static_cast<int64_t>(home_.model()->parameters().version());
    if (message.weight_version != version) {
      return absl::FailedPreconditionError(
          fmt::format("step {}: rank 0 has version {} of the weights, this rank {}", message.number,
                      message.weight_version, version));
    }
    if (std::ssize(message.plans) != ranks_.lanes()) {
      return DataLoss("step {}: {} plans for {} data-parallel ranks", message.number,
                      message.plans.size(), ranks_.lanes());
    }
    for (const StepPlan& plan : message.plans) CADRE_RETURN_IF_ERROR(CheckStep(plan, bounds_));
    return absl::OkStatus();
  }

  absl::Status RunStep(const StepMessage& message) {
    CADRE_RETURN_IF_ERROR(CheckMessage(message));
    const std::vector<StepPlan>& plans = message.plans;
    const StepPlan& plan = plans[static_cast<size_t>(ranks_.lane())];
    const TraceScope scope(options_.trace, "step", {{"tokens", plan.tokens()}});
    for (const KvCopy& copy : plan.copies) pool_.Copy(copy.from, copy.to);
    StepForward forward(ctx_, *home_.model(), &ranks_);
    forward.Run(plans, pool_, options_.attention_workers);
    for (int lane = 0; lane < ranks_.lanes(); ++lane) {
      for (const RowRange& rows : plans[static_cast<size_t>(lane)].scored) {
        forward.Logits(lane, rows);
      }
    }
    for (int lane = 0; lane < ranks_.lanes(); ++lane) {
      for (const RowRange& rows : plans[static_cast<size_t>(lane)].pooled) {
        forward.Hidden(lane, rows);
      }
    }
    forward.Sampled(plans);
    CADRE_RETURN_IF_ERROR(ranks_.failure());
    load_.Count(forward.routing());
    return absl::OkStatus();
  }

  absl::Status GiveUpMemory(int level) {
    if (level == 2 && !home_.reloadable())
      return DataLoss("sleep level 2: this rank cannot load the weights again");
    if (sleep_level_ == 0) pool_.DropBytes();
    if (level == 2 && home_.model() != nullptr) {
      ctx_.parameters = nullptr;
      packed_ = {};
      home_.Drop();
    }
    allocator_.Trim();
    sleep_level_ = std::max(sleep_level_, level);
    return absl::OkStatus();
  }

  absl::Status TakeMemory() {
    if (home_.model() == nullptr) {
      CADRE_RETURN_IF_ERROR(home_.Reload());
      ctx_.parameters = &home_.model()->parameters();
      packed_ = std::move(home_.model()->packed());
      sleep_level_ = 1;
    }
    CADRE_RETURN_IF_ERROR(CheckKvMemory(options_.kv_cache_memory_bytes, pool_.bytes(), &ranks_));
    pool_.AllocateBytes();
    sleep_level_ = 0;
    return absl::OkStatus();
  }

  // Where one rank cannot, all sleep on and may be woken again; only a lost rank ends this one.
  absl::Status Wake() {
    const int level = sleep_level_;
    if (level == 0) return DataLoss("rank 0 wakes a rank that does not sleep");
    const absl::Status all = ranks_.Agree(TakeMemory(), kWakeLabel);
    return all.ok() ? all : GiveUpMemory(level);
  }

  ModelHome& home_;
  const EngineOptions& options_;
  ServingRanks& ranks_;
  HostAllocator allocator_;
  PackedWeights packed_;
  Context ctx_;
  KvBlockPool pool_;
  ExpertLoad load_;
  const StepBounds bounds_;
  int sleep_level_ = 0;
};

}  // namespace

absl::Status FollowSteps(ModelHome& home, const EngineOptions& options, ServingRanks& ranks) {
  CADRE_ASSIGN_OR_RETURN(KvPlan kv, PlanCacheOf(*home.model(), options));
  Follower follower(home, options, ranks, std::move(kv));
  CADRE_RETURN_IF_ERROR(follower.MeasureBudget());
  while (true) {
    CADRE_ASSIGN_OR_RETURN(const StepMessage message, ranks.Hear());
    if (message.kind == StepKind::kStop) return absl::OkStatus();
    CADRE_RETURN_IF_ERROR(follower.Do(message));
  }
}

}  // namespace cadre
