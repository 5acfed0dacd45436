// Mesh: the groups of one rank under a layout, made once.
//
//   Mesh mesh(&world, layout);
//   Communicator* tp = mesh.group(Axis::kTp);   // null where the axis has one rank
//
// As thread-safe as its communicators: a group is used by one thread.
#pragma once

#include <array>
#include <functional>
#include <memory>

#include "parallel/communicator.h"
#include "parallel/groups.h"
#include "parallel/layout.h"
#include "parallel/model_part.h"
#include "parallel/world.h"

namespace cadre {

// What `rank` of a layout holds of a model.
ModelPart PartOf(const Layout& layout, int rank);

class Mesh {
 public:
  // Stands between a group and its users: for tests.
  using Wrap = std::function<std::unique_ptr<Communicator>(std::unique_ptr<Communicator>)>;

  // world: null for a layout of one rank; else it outlives the mesh, and all its ranks make their
  // meshes at the same time.
  Mesh(World* world, const Layout& layout, const Wrap& wrap = nullptr);

  const Layout& layout() const { return layout_; }
  int rank() const { return rank_; }
  const Coordinates& place() const { return place_; }
  // All ranks; null in a world of one.
  Communicator* world() const { return world_.get(); }
  // The same ranks, for the thread that writes checkpoints.
  Communicator* checkpoint() const { return checkpoint_.get(); }
  Communicator* group(Axis axis) const { return groups_[static_cast<size_t>(axis)].get(); }
  // Of an axis that gradients are summed over: the ranks that share out one copy of what it sums,
  // which is the group itself unless sharding is hybrid, and the ranks with the same shard of other
  // copies.
  Communicator* shard_group(Axis axis) const {
    return layout_.zero_group == 0 ? group(axis) : shard_groups_[static_cast<size_t>(axis)].get();
  }
  Communicator* copy_group(Axis axis) const {
    return copy_groups_[static_cast<size_t>(axis)].get();
  }

  // What ops and blocks are given; borrows the mesh's communicators.
  ParallelGroups Groups() const;
  ModelPart part() const { return PartOf(layout_, rank_); }

 private:
  using GroupsByAxis = std::array<std::unique_ptr<Communicator>, std::size(kAxes)>;

  const Layout layout_;
  int rank_ = 0;
  Coordinates place_;
  std::unique_ptr<Communicator> world_, checkpoint_;
  GroupsByAxis groups_;
  GroupsByAxis shard_groups_, copy_groups_;  // of hybrid sharding
};

}  // namespace cadre
