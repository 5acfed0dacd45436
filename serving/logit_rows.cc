#include "serving/logit_rows.h"

#include <algorithm>
#include <cstring>

#include "core/ops/elementwise.h"
#include "core/ops/linear_cross_entropy.h"
#include "core/ops/softmax_rows.h"
#include "core/parallel_for.h"
#include "model/decoder.h"
#include "parallel/combine_ranks.h"
#include "parallel/row_parallel.h"
#include "parallel/vocabulary.h"

namespace cadre {

namespace {

constexpr OpLabel kLogitsLabel = {"logits"};

// parts: [rows, columns of rank r] of each rank, end to end.
Tensor JoinColumns(Context& ctx, const Tensor& parts, int64_t rows, int64_t vocabulary, int ranks) {
  Tensor whole = ctx.Empty({rows, vocabulary}, DType::kF32);
  const float* part = parts.data<float>();
  for (int rank = 0; rank < ranks; ++rank) {
    const Shard columns = VocabularyPart(vocabulary, ranks, rank);
    for (int64_t r = 0; r < rows; ++r, part += columns.numel) {
      std::copy_n(part, columns.numel, whole.data<float>() + r * vocabulary + columns.begin);
    }
  }
  return whole;
}

// Each row's log-sum-exp as the loss puts it together from the ranks' columns; on every rank.
std::vector<float> FoldLogSumExp(Context& ctx, const Tensor& own, Communicator* group) {
  const int64_t rows = own.dim(0);
  const std::vector<int32_t> none(static_cast<size_t>(rows), -1);
  const Tensor lse = ctx.Empty({rows}, DType::kF32);
  ops::CrossEntropyRowsCpu(ctx,
                           {.logits = own,
                            .targets = Tensor::Of<int32_t>(*ctx.allocator, {rows}, std::span(none)),
                            .scale = 0,
                            .z_coefficient = 0,
                            .log_sum_exp = lse,
                            .logprobs = ctx.Empty({rows}, DType::kF32),
                            .combine = FoldSoftmaxOver(group, kLogitsLabel)});
  return {lse.data<float>(), lse.data<float>() + rows};
}

// own [rows, this rank's columns] -> all columns on the group's first rank.
LogitRows GatherLogits(Context& ctx, const Tensor& own, int64_t vocabulary, Communicator* group) {
  const int64_t rows = own.dim(0);
  LogitRows gathered{.lse = FoldLogSumExp(ctx, own, group)};
  std::vector<int64_t> send(static_cast<size_t>(group->size())), receive(send.size());
  send[0] = own.numel();
  int64_t all = 0;
  for (int r = 0; group->rank() == 0 && r < group->size(); ++r) {
    all += receive[static_cast<size_t>(r)] =
        VocabularyPart(vocabulary, group->size(), r).numel * rows;
  }
  const Tensor parts = ctx.Zeros({all}, DType::kF32);
  const WorkPtr work =
      group->AllToAllV(own.Reshape({own.numel()}), send, parts, receive, kLogitsLabel);
  Landed(ctx, *work, kLogitsLabel);
  if (all > 0) gathered.logits = JoinColumns(ctx, parts, rows, vocabulary, group->size());
  return gathered;
}

}  // namespace

Tensor GatherRows(Context& ctx, const Tensor& hidden, std::span<const int64_t> rows) {
  Tensor gathered = ctx.Empty({static_cast<int64_t>(rows.size()), hidden.dim(1)}, hidden.dtype());
  const size_t bytes = static_cast<size_t>(hidden.dim(1)) * SizeOf(hidden.dtype());
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(gathered.raw() + i * bytes, hidden.raw() + rows[i] * bytes, bytes);
  }
  return gathered;
}

LogitRows ComputeLogits(Context& ctx, const Decoder& decoder, const Tensor& hidden) {
  Tensor own = ops::CastTensor(ctx, ops::Logits(ctx, hidden, decoder.head()), DType::kF32);
  Communicator* group = TensorGroup(ctx);
  if (GroupSize(group) > 1) return GatherLogits(ctx, own, decoder.spec().vocab, group);
  LogitRows rows{.logits = std::move(own)};
  rows.lse.resize(rows.logits.dim(0));
  ParallelFor(ctx, rows.logits.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rows.lse[i] = ops::RowLogSumExp(rows.row(i));
  });
  return rows;
}

}  // namespace cadre
