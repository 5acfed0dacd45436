#include "training/plan_advice.h"

#include <algorithm>
#include <functional>

#include "training/layout_needs.h"

namespace cadre {
namespace {

struct Change {
  std::string text;
  std::function<void(config::TrainConfig*)> apply;
  int world;
};

std::vector<Change> Changes(const PlanArgs& args) {
  const int world = args.layout.world(), micro = args.config.micro_batch_size();
  const Layout& l = args.layout;
  std::vector<Change> changes;
  const auto field = [&](const std::string& name, int value, auto set) {
    changes.push_back({fmt::format("{}={}", name, value),
                       [=](config::TrainConfig* config) { set(config, value); }, world});
  };
  for (int stage = l.zero_stage + 1; stage <= 3 && l.dp > 1; ++stage) {
    field("parallel.zero_stage", stage,
          [](auto* c, int value) { c->mutable_parallel()->set_zero_stage(value); });
  }
  // With as many ranks, what one axis gains data parallelism gives.
  field("parallel.tensor_parallel_size", 2 * l.tp, [](auto* c, int value) {
    c->mutable_parallel()->set_tensor_parallel_size(value);
    c->mutable_parallel()->clear_data_parallel_size();
  });
  field("parallel.pipeline_parallel_size", 2 * l.pp, [](auto* c, int value) {
    c->mutable_parallel()->set_pipeline_parallel_size(value);
    c->mutable_parallel()->clear_data_parallel_size();
  });
  field("parallel.expert_parallel_size", 2 * l.ep,
        [](auto* c, int value) { c->mutable_parallel()->set_expert_parallel_size(value); });
  if (micro > 1) {
    field("micro_batch_size", micro / 2,
          [](auto* c, int value) { c->set_micro_batch_size(value); });
  }
  if (args.config.checkpoint().async()) {
    changes.push_back({"checkpoint.async=false",
                       [](auto* c) { c->mutable_checkpoint()->set_async(false); }, world});
  }
  changes.push_back({fmt::format("--world {}", 2 * world),
                     [](auto* c) { c->mutable_parallel()->clear_data_parallel_size(); },
                     2 * world});
  return changes;
}

}  // namespace

int64_t MostBytes(const std::vector<RanksAlike>& ranks) {
  int64_t most = 0;
  for (const RanksAlike& alike : ranks) most = std::max(most, alike.plan.total());
  return most;
}

std::vector<LeanerRun> LeanerRuns(const PlanArgs& args) {
  std::vector<LeanerRun> runs;
  const absl::StatusOr<std::vector<RanksAlike>> now = PlanRanks(args);
  if (!now.ok()) return runs;
  const int64_t bytes = MostBytes(*now);
  for (const Change& change : Changes(args)) {
    config::TrainConfig config = args.config;
    change.apply(&config);
    const absl::StatusOr<Layout> layout = LayoutOfRun(config, change.world);
    if (!layout.ok()) continue;
    const auto ranks = PlanRanks({.config = config,
                                  .spec = args.spec,
                                  .layout = *layout,
                                  .compute = args.compute,
                                  .ranks_on_host = args.ranks_on_host,
                                  .measured = args.measured});
    if (ranks.ok() && MostBytes(*ranks) < bytes) runs.push_back({change.text, MostBytes(*ranks)});
  }
  std::ranges::stable_sort(runs, {}, &LeanerRun::bytes);
  return runs;
}

}  // namespace cadre
