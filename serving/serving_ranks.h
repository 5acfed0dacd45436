// ServingRanks: what a rank of a server does together with the others. Rank 0 has the HTTP front,
// the scheduler and the sampler and tells the others each step; all run it with their part of the
// weights and of the keys and values (serving/follower.h).
//
//   ServingRanks ranks(world, layout, recorder);
//   ... LoadModel with decoder.part = ranks.part(); ranks.Agree(status, {"model"}) ...
//   rank 0: EngineOptions{.ranks = &ranks}        others: FollowSteps(home, options, ranks)
//
// Tell and Hear are of one thread each rank, which also runs the forward; what comes before them is
// the same calls in the same order on every rank.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/host_allocator.h"
#include "core/status.h"
#include "parallel/mesh.h"
#include "serving/step_message.h"

namespace cadre {

// Of the ranks' agreement that a sleep is over.
inline constexpr OpLabel kWakeLabel = {"wake"};

class ServingRanks {
 public:
  // world: of at least two ranks; outlives this. recorder: null, or outlives this.
  ServingRanks(World& world, const Layout& layout, FlightRecorder* recorder);

  int rank() const { return mesh_.rank(); }
  bool leader() const { return mesh_.rank() == 0; }
  const Layout& layout() const { return mesh_.layout(); }
  ModelPart part() const { return mesh_.part(); }
  // Ranks that share this one's memory.
  int ranks_on_host() const { return ranks_on_host_; }
  // Data-parallel ranks: see serving/lanes.h.
  int lanes() const { return layout().dp; }
  int lane() const { return mesh_.place().dp; }
  // The one whose hidden states and logits rank 0 samples the lane's tokens from.
  int results_rank(int lane) const {
    return layout().tp * (lane + layout().dp * (layout().pp - 1));
  }
  // For the context.
  ParallelGroups* groups() { return &groups_; }

  // See parallel/agree.h. However long disks take.
  absl::Status Agree(const absl::Status& mine, const OpLabel& label);
  // The least of what the ranks hand in.
  absl::StatusOr<int64_t> Least(int64_t mine, const OpLabel& label);

  // Whether rank 0 sees what its mixture layers route alone, not what those of all ranks do.
  bool routes_apart() const { return layout().pp * layout().dp > 1; }
  // The sum of what the ranks counted of their tokens and layers; of ranks that share tensors, and
  // so have the same tokens, the first one's counts. All call, with as many.
  absl::StatusOr<std::vector<int64_t>> SumCounts(std::span<const int64_t> own);

  // Rank 0: to all others.
  absl::Status Tell(const StepMessage& message);
  // The others: what rank 0 tells next, however long it takes. kDataLoss: it is no message.
  absl::StatusOr<StepMessage> Hear();
  // What went wrong in the operations of a step; nothing that was computed with it counts.
  const absl::Status& failure() const { return groups_.failure; }

 private:
  void Record(int64_t step);

  const int ranks_on_host_;
  HostAllocator allocator_;
  Mesh mesh_;
  std::unique_ptr<Communicator> control_;
  ParallelGroups groups_;
  Tensor first_;  // u8 [kFirstBytes]: how long the message is, and its beginning
};

}  // namespace cadre
