#include "parallel/mesh.h"

#include <numeric>

#include "parallel/checkpoint_group.h"
#include "parallel/schedule.h"

namespace cadre {

ModelPart PartOf(const Layout& layout, int rank) {
  const Coordinates place = CoordinatesOf(layout, rank);
  const ScheduleSpec pipeline = PipelineOf(layout);
  std::vector<int> stages;
  for (int stage = 0; stage < layout.stages(); ++stage) {
    if (RankOfStage(pipeline, stage) == place.pp) stages.push_back(stage);
  }
  return {.tp = layout.tp,
          .tp_rank = place.tp,
          .ep = layout.ep,
          .ep_rank = place.ep,
          .etp = layout.etp,
          .etp_rank = place.etp,
          .sequence_parallel = layout.tp == 1 || layout.sequence_parallel,
          .stage_layers = layout.stage_layers,
          .stages = std::move(stages)};
}

Mesh::Mesh(World* world, const Layout& layout, const Wrap& wrap) : layout_(layout) {
  CADRE_CHECK(layout.world() == (world == nullptr ? 1 : world->size()),
              "{} ranks for a world of {}", layout.world(), world == nullptr ? 1 : world->size());
  if (world == nullptr || world->size() == 1) return;
  rank_ = world->rank();
  place_ = CoordinatesOf(layout, rank_);
  std::vector<int> all(static_cast<size_t>(world->size()));
  std::iota(all.begin(), all.end(), 0);
  world_ = world->NewGroup("world", all);
  checkpoint_ = world->NewGroup(kCheckpointGroup, all, kCheckpointTimeout);
  // Every rank makes every group, so that all count alike.
  const auto make = [&](GroupsByAxis& groups, Axis axis, std::string_view suffix,
                        std::vector<int> ranks) {
    if (ranks.empty()) ranks = {rank_};
    auto group = world->NewGroup(fmt::format("{}{}", Name(axis), suffix), ranks);
    if (group->size() == 1) return;
    groups[static_cast<size_t>(axis)] = wrap ? wrap(std::move(group)) : std::move(group);
  };
  for (const Axis axis : kAxes) make(groups_, axis, "", GroupRanks(layout, axis, rank_));
  if (layout.zero_group == 0) return;
  for (const Axis axis : {Axis::kDpCp, Axis::kStage, Axis::kEdp, Axis::kEtpEdp, Axis::kEmbedding}) {
    make(shard_groups_, axis, "_shard", ShardRanks(layout, axis, rank_));
    make(copy_groups_, axis, "_copy", CopyRanks(layout, axis, rank_));
  }
}

ParallelGroups Mesh::Groups() const {
  return {.world = world(),
          .tp = group(Axis::kTp),
          .cp = group(Axis::kCp),
          .ring = layout_.ring,
          .sequence = group(part().replicated_tokens() ? Axis::kCp : Axis::kTpCp),
          .dp = group(Axis::kDp),
          .dp_cp = group(Axis::kDpCp),
          .pp = group(Axis::kPp),
          .ep = group(Axis::kEp),
          .etp = group(Axis::kEtp),
          .edp = group(Axis::kEdp)};
}

}  // namespace cadre
