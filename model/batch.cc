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

ops::PermutationPlan OrderOf(Allocator& allocator, std::span<const int32_t> row_offsets,
                             int ranks) {
  const int64_t tokens = row_offsets.back();
  ops::PermutationPlan order{.row_of = Tensor::Empty(allocator, {tokens, 1}, DType::kI32),
                             .token_of = Tensor::Empty(allocator, {tokens}, DType::kI32)};
  int32_t place = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    for (const int32_t token : ZigzagTokens(row_offsets, ranks, rank)) {
      order.row_of.data<int32_t>()[place] = token;
      order.token_of.data<int32_t>()[token] = place++;
    }
  }
  return order;
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
  std::vector<int32_t> tokens = ZigzagTokens(row_offsets, ranks, rank), offsets;
  for (const int32_t offset : whole.offsets) {
    offsets.push_back(
        static_cast<int32_t>(std::ranges::lower_bound(tokens, offset) - tokens.begin()));
  }
  Batch share{.ids = Take(allocator, whole.ids, tokens),
              .positions = Take(allocator, whole.positions, tokens),
              .offsets = std::move(offsets),
              .attention_workers = whole.attention_workers};
  share.context = {.offsets = whole.offsets,
                   .tokens = std::move(tokens),
                   .order = OrderOf(allocator, row_offsets, ranks)};
  return share;
}

}  // namespace cadre
