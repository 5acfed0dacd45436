#include "serving/prompt_shares.h"

#include <algorithm>
#include <numeric>

namespace cadre {
namespace {

// Hands `room` out evenly, nobody getting more than is wanted: the smallest wants are met first, so
// what they spare is there for the others.
void ShareEvenly(std::span<const int64_t> wanted, int64_t room, std::span<int64_t> shares) {
  std::vector<size_t> order(wanted.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return wanted[i]; });
  for (size_t done = 0; done < order.size(); ++done) {
    const auto sharers = static_cast<int64_t>(order.size() - done);
    const int64_t share = std::min(wanted[order[done]], room / sharers);
    shares[order[done]] += share;
    room -= share;
  }
}

}  // namespace

std::vector<int64_t> SharePrompts(std::span<const int64_t> left, int64_t room) {
  std::vector<int64_t> shares(left.size(), 0);
  if (left.empty()) return shares;
  const auto others = static_cast<int64_t>(left.size()) - 1;
  shares[0] = std::min(left[0], std::max(room - others, int64_t{1}));
  if (others > 0) shares[0] = std::min(shares[0], std::max(room / 2, int64_t{1}));
  ShareEvenly(left.subspan(1), room - shares[0], std::span(shares).subspan(1));
  const int64_t spare = room - std::accumulate(shares.begin(), shares.end(), int64_t{0});
  shares[0] += std::min(spare, left[0] - shares[0]);
  return shares;
}

}  // namespace cadre
