#include "model/batch.h"

#include <algorithm>
#include <utility>

#include "parallel/zigzag.h"

namespace cadre {
namespace {

Tensor Take(Allocator& allocator, const Tensor& from, std::span<const int32_t> tokens) {
  Tensor to = Tensor::Empty(allocator, {static_cast<int64_t>(tokens.size())}, DType::kI32);
  std::ranges::transform(tokens, to.data<int32_t>(),
                         [&](int32_t t) { return from.data<int32_t>()[t]; });
  return to;
}

using Tokens = std::vector<std::vector<int32_t>>;  // by rank

ops::PermutationPlan OrderOf(Allocator& allocator, const Tokens& tokens, int64_t count) {
  ops::PermutationPlan order{.row_of = Tensor::Empty(allocator, {count, 1}, DType::kI32),
                             .token_of = Tensor::Empty(allocator, {count}, DType::kI32)};
  int32_t place = 0;
  for (const std::vector<int32_t>& of_rank : tokens) {
    for (const int32_t token : of_rank) {
      order.row_of.data<int32_t>()[place] = token;
      order.token_of.data<int32_t>()[token] = place++;
    }
  }
  return order;
}

RingShares SharesOf(const Batch& whole, const Tokens& tokens) {
  RingShares shares;
  const int32_t* positions = whole.positions.data<int32_t>();
  for (const std::vector<int32_t>& of_rank : tokens) {
    std::vector<int32_t>& offsets = shares.offsets.emplace_back();
    for (const int32_t offset : whole.offsets) {
      offsets.push_back(
          static_cast<int32_t>(std::ranges::lower_bound(of_rank, offset) - of_rank.begin()));
    }
    std::vector<int32_t>& at = shares.positions.emplace_back();
    for (const int32_t token : of_rank) at.push_back(positions[token]);
  }
  return shares;
}

}  // namespace

Batch PackSequences(Allocator& allocator, std::span<const std::vector<int32_t>> sequences) {
  std::vector<int32_t> ids, positions, offsets = {0};
  for (const std::vector<int32_t>& sequence : sequences) {
    for (size_t i = 0; i < sequence.size(); ++i) {
      ids.push_back(sequence[i]);
      positions.push_back(static_cast<int32_t>(i));
    }
    offsets.push_back(static_cast<int32_t>(ids.size()));
  }
  Shape shape{static_cast<int64_t>(ids.size())};
  return {.ids = Tensor::Of<int32_t>(allocator, shape, std::span<const int32_t>(ids)),
          .positions = Tensor::Of<int32_t>(allocator, shape, std::span<const int32_t>(positions)),
          .offsets = std::move(offsets)};
}

Batch ShareOf(Allocator& allocator, const Batch& whole, std::span<const int32_t> row_offsets,
              int ranks, int rank) {
  CADRE_CHECK(whole.kv.empty() && !whole.context.has_value() && !row_offsets.empty() &&
                  row_offsets.back() == whole.tokens(),
              "{} rows of {} tokens", row_offsets.size(), whole.tokens());
  Tokens tokens;
  for (int r = 0; r < ranks; ++r) tokens.push_back(ZigzagTokens(row_offsets, ranks, r));
  auto shares = std::make_shared<const RingShares>(SharesOf(whole, tokens));
  const auto own = static_cast<size_t>(rank);
  Batch share{.ids = Take(allocator, whole.ids, tokens[own]),
              .positions = Take(allocator, whole.positions, tokens[own]),
              .offsets = shares->offsets[own],
              .kv_quantization = whole.kv_quantization,
              .attention_workers = whole.attention_workers};
  share.context = {.offsets = whole.offsets,
                   .tokens = tokens[own],
                   .order = OrderOf(allocator, tokens, whole.tokens()),
                   .ring = std::move(shares)};
  return share;
}

}  // namespace cadre
