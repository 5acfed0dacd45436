// Layout: how many ranks share what, and which ranks those are.
//
//   CADRE_ASSIGN_OR_RETURN(const Layout layout, ResolveLayout(config.parallel(), world, needs));
//   for (const Axis axis : kAxes) groups[axis] = GroupRanks(layout, axis, rank);
//
// Ranks are numbered tensor fastest, then context, data, pipeline:
//   rank = tp + TP * (cp + CP * (dp + DP * pp))
// The experts' mesh folds over the TP * CP * DP ranks of one pipeline position:
//   rank = etp + ETP * (ep + EP * (edp + EDP * pp))
//
// Pure functions, callable from any thread.
#pragma once

#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre {
namespace config {
class ParallelConfig;
enum PipelineSchedule : int;
}  // namespace config
struct ScheduleSpec;

// What a model and its batch ask of a layout. 0: there is no such thing, or nobody says.
struct LayoutNeeds {
  int num_layers = 0;
  int num_moe_layers = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;
  int vocab_size = 0;
  int intermediate_size = 0;
  int num_experts = 0;
  int moe_intermediate_size = 0;
  int shared_expert_intermediate_size = 0;
  int seq_len = 0;
  int global_batch_size = 0;
  int micro_batch_size = 0;
  // Layers whose sums over tensor-parallel ranks run beside the next module: all-reduces hide all
  // of it, so sequence_parallel is false unless the config says otherwise.
  bool ladder = false;
  // What the embedding and the output head cost, in layers; for the even split.
  double embedding_layers = 0;
  double head_layers = 0;
};

// Sizes, all at least 1. tp * cp * dp * pp is the world.
struct Layout {
  int tp = 1;
  int cp = 1;
  bool ring = false;  // where cp > 1: keys and values go around instead of being gathered
  int dp = 1;
  int pp = 1;
  int etp = 1;
  int ep = 1;
  int edp = 1;                     // etp * ep * edp = tp * cp * dp
  bool sequence_parallel = false;  // only where tp > 1
  int zero_stage = 0;
  int zero_group = 0;  // cp x dp ranks that hold one copy of what is sharded; 0: all
  config::PipelineSchedule schedule{};  // 1f1b where pp = 1
  int stages_per_rank = 1;
  std::vector<int> stage_layers;  // by stage; empty where the needs name no layers
  int microbatches = 1;           // a step's, per data-parallel rank

  int world() const { return tp * cp * dp * pp; }
  int stages() const { return pp * stages_per_rank; }
};

// kInvalidArgument, one line with the arithmetic, where the sizes do not fit the world, the model,
// the batch or one another; or where a field that has another value than its default does nothing,
// whatever the data-parallel size.
absl::StatusOr<Layout> ResolveLayout(const config::ParallelConfig& config, int world,
                                     const LayoutNeeds& needs);

// A step's schedule (parallel/schedule.h).
ScheduleSpec PipelineOf(const Layout& layout);

struct Coordinates {
  int tp = 0, cp = 0, dp = 0, pp = 0;
  int etp = 0, ep = 0, edp = 0;
};
Coordinates CoordinatesOf(const Layout& layout, int rank);

enum class Axis {
  kTp,
  kCp,
  kTpCp,  // the ranks that share a sequence
  kDp,
  kDpCp,   // the ranks over which dense gradients are summed
  kStage,  // all ranks of one pipeline position
  kPp,
  kEtp,
  kEp,
  kEdp,     // the ranks over which expert gradients are summed
  kEtpEdp,  // the ranks with the same experts, or columns of them
  // The ranks over which the gradient of what the first and the last stage share is summed: kDpCp
  // of both.
  kEmbedding,
};
inline constexpr Axis kAxes[] = {Axis::kTp,   Axis::kCp,    Axis::kTpCp,   Axis::kDp,
                                 Axis::kDpCp, Axis::kStage, Axis::kPp,     Axis::kEtp,
                                 Axis::kEp,   Axis::kEdp,   Axis::kEtpEdp, Axis::kEmbedding};

// "tp", "cp", "tp_cp", "dp", "dp_cp", "stage", "pp", "etp", "ep", "edp", "etp_edp",
// "embedding".
std::string_view Name(Axis axis);

// The axis's group that `rank` belongs to, `rank` included, in rising order. Empty for kEmbedding
// where the rank holds neither the first nor the last stage.
std::vector<int> GroupRanks(const Layout& layout, Axis axis, int rank);

// Hybrid sharding cuts what an axis's group sums over those of its ranks that are among the same
// tp * zero_group neighbours (PyTorch's HSDP: Zhao et al., "PyTorch FSDP: Experiences on Scaling
// Fully Sharded Data Parallel", 2023). All of the group where zero_group is 0.
std::vector<int> ShardRanks(const Layout& layout, Axis axis, int rank);
// The ranks of the group that have the same shard, `rank` included; rising, as all these.
std::vector<int> CopyRanks(const Layout& layout, Axis axis, int rank);

}  // namespace cadre
