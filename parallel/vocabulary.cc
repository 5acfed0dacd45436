#include "parallel/vocabulary.h"

#include <algorithm>

#include "core/ops/embedding.h"
#include "parallel/combine_ranks.h"
#include "parallel/token_ops.h"

namespace cadre {
namespace {

Shard OwnPart(Context& ctx, const VocabularyArgs& args) {
  const Shard part = VocabularyPart(args.vocabulary, GroupSize(args.group), GroupRank(args.group));
  const Shape& shape = ctx.parameters->spec(args.weight).shape;
  CADRE_CHECK(part.numel > 0 && shape[0] == part.numel, "vocabulary {} over {} ranks, weight {}",
              args.vocabulary, GroupSize(args.group), shape.ToString());
  return part;
}

}  // namespace

Shard VocabularyPart(int64_t vocabulary, int ranks, int rank) {
  const int64_t each = (vocabulary + ranks - 1) / ranks;
  const int64_t begin = std::min(vocabulary, each * rank);
  return {begin, std::min(each, vocabulary - begin)};
}

Var VocabularyEmbedding(Context& ctx, const Tensor& ids, const VocabularyArgs& args,
                        bool sequence_parallel) {
  const Shard part = OwnPart(ctx, args);
  Tensor local = ctx.Empty(ids.shape(), DType::kI32);
  for (int64_t t = 0; t < ids.numel(); ++t) {
    const int32_t id = ids.data<int32_t>()[t];
    CADRE_CHECK(id >= 0 && id < args.vocabulary, "token {} has id {}, the vocabulary is {}", t, id,
                args.vocabulary);
    const bool here = id >= part.begin && id < part.end();
    local.data<int32_t>()[t] = here ? static_cast<int32_t>(id - part.begin) : -1;
  }
  const Var rows = ops::Embedding(ctx, local, args.weight);
  const TokenOp op = sequence_parallel ? TokenOp::kScatter : TokenOp::kReduce;
  return StartExchange(ctx, rows, {op, args.group, args.label}).Wait(ctx);
}

ops::LinearCrossEntropyResult VocabularyCrossEntropy(Context& ctx, const Var& hidden,
                                                     const VocabularyArgs& vocabulary,
                                                     ops::LinearCrossEntropyArgs args) {
  args.weight = vocabulary.weight;
  args.cut = {.first = OwnPart(ctx, vocabulary).begin,
              .vocabulary = vocabulary.vocabulary,
              .combine = FoldSoftmaxOver(vocabulary.group, vocabulary.label)};
  return ops::LinearCrossEntropy(ctx, hidden, args);
}

}  // namespace cadre
