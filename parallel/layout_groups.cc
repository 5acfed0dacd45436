#include <algorithm>
#include <iterator>

#include "parallel/layout.h"
#include "parallel/schedule.h"
#include "proto/parallel_config.pb.h"

namespace cadre {
namespace {

// `count` ranks from `first` on, each `stride` further.
std::vector<int> Every(int first, int stride, int count) {
  std::vector<int> ranks(count);
  for (int i = 0; i < count; ++i) ranks[i] = first + i * stride;
  return ranks;
}

std::vector<int> EmbeddingRanks(const Layout& layout, int rank) {
  const int stage_ranks = layout.tp * layout.cp * layout.dp;
  const int pp = rank / stage_ranks, last = RankOfStage(PipelineOf(layout), layout.stages() - 1);
  if (pp != 0 && pp != last) return {};
  std::vector<int> ranks = Every(rank % layout.tp, layout.tp, layout.cp * layout.dp);
  if (last == 0) return ranks;
  std::ranges::copy(Every(last * stage_ranks + ranks.front(), layout.tp, layout.cp * layout.dp),
                    std::back_inserter(ranks));
  return ranks;
}

std::vector<int> SameExperts(const Layout& layout, int rank) {
  const int etp_ep = layout.etp * layout.ep;
  const int stage_ranks = etp_ep * layout.edp;
  std::vector<int> ranks;
  for (int edp = 0; edp < layout.edp; ++edp) {
    const int first = rank / stage_ranks * stage_ranks + edp * etp_ep +
                      CoordinatesOf(layout, rank).ep * layout.etp;
    for (int etp = 0; etp < layout.etp; ++etp) ranks.push_back(first + etp);
  }
  return ranks;
}

}  // namespace

Coordinates CoordinatesOf(const Layout& layout, int rank) {
  CADRE_CHECK(rank >= 0 && rank < layout.world(), "rank {} of {}", rank, layout.world());
  const int stage_ranks = layout.tp * layout.cp * layout.dp;
  const int local = rank % stage_ranks;
  return {.tp = local % layout.tp,
          .cp = local / layout.tp % layout.cp,
          .dp = local / (layout.tp * layout.cp),
          .pp = rank / stage_ranks,
          .etp = local % layout.etp,
          .ep = local / layout.etp % layout.ep,
          .edp = local / (layout.etp * layout.ep)};
}

std::string_view Name(Axis axis) {
  switch (axis) {
    case Axis::kTp:
      return "tp";
    case Axis::kCp:
      return "cp";
    case Axis::kTpCp:
      return "tp_cp";
    case Axis::kDp:
      return "dp";
    case Axis::kDpCp:
      return "dp_cp";
    case Axis::kStage:
      return "stage";
    case Axis::kPp:
      return "pp";
    case Axis::kEtp:
      return "etp";
    case Axis::kEp:
      return "ep";
    case Axis::kEdp:
      return "edp";
    case Axis::kEtpEdp:
      return "etp_edp";
    case Axis::kEmbedding:
      return "embedding";
  }
  __builtin_unreachable();
}

std::vector<int> GroupRanks(const Layout& layout, Axis axis, int rank) {
  const Coordinates at = CoordinatesOf(layout, rank);
  const int tp_cp = layout.tp * layout.cp;
  const int etp_ep = layout.etp * layout.ep;
  const int stage_ranks = tp_cp * layout.dp;
  switch (axis) {
    case Axis::kTp:
      return Every(rank - at.tp, 1, layout.tp);
    case Axis::kCp:
      return Every(rank - at.cp * layout.tp, layout.tp, layout.cp);
    case Axis::kTpCp:
      return Every(rank - at.tp - at.cp * layout.tp, 1, tp_cp);
    case Axis::kDp:
      return Every(rank - at.dp * tp_cp, tp_cp, layout.dp);
    case Axis::kDpCp:
      return Every(rank - at.cp * layout.tp - at.dp * tp_cp, layout.tp, layout.cp * layout.dp);
    case Axis::kStage:
      return Every(at.pp * stage_ranks, 1, stage_ranks);
    case Axis::kPp:
      return Every(rank - at.pp * stage_ranks, stage_ranks, layout.pp);
    case Axis::kEtp:
      return Every(rank - at.etp, 1, layout.etp);
    case Axis::kEp:
      return Every(rank - at.ep * layout.etp, layout.etp, layout.ep);
    case Axis::kEdp:
      return Every(rank - at.edp * etp_ep, etp_ep, layout.edp);
    case Axis::kEtpEdp:
      return SameExperts(layout, rank);
    case Axis::kEmbedding:
      return EmbeddingRanks(layout, rank);
  }
  __builtin_unreachable();
}

std::vector<int> ShardRanks(const Layout& layout, Axis axis, int rank) {
  std::vector<int> ranks = GroupRanks(layout, axis, rank);
  if (layout.zero_group == 0) return ranks;
  const int block = layout.tp * layout.zero_group;
  std::erase_if(ranks, [&](int other) { return other / block != rank / block; });
  return ranks;
}

std::vector<int> CopyRanks(const Layout& layout, Axis axis, int rank) {
  const std::vector<int> all = GroupRanks(layout, axis, rank);
  const std::vector<int> shards = ShardRanks(layout, axis, rank);
  if (all.empty()) return {};
  CADRE_CHECK(all.size() % shards.size() == 0, "{} ranks in groups of {}", all.size(),
              shards.size());
  std::vector<int> copies;
  for (size_t i = static_cast<size_t>(std::ranges::find(shards, rank) - shards.begin());
       i < all.size(); i += shards.size()) {
    copies.push_back(all[i]);
  }
  return copies;
}

}  // namespace cadre
