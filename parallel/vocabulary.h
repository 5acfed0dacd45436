// Vocabulary-parallel embedding and loss: rank r of n holds the rows VocabularyPart(V, n, r) of the
// [V, D] table, as a parameter of that shape.
//
// `group` null or of size 1 makes each the op of one process. Failures and labels as token_ops.h
// says.
#pragma once

#include "core/ops/linear_cross_entropy.h"
#include "parallel/groups.h"
#include "parallel/shard.h"

namespace cadre {

// ceil(V / n) rows each from the first rank on; the last part may be shorter. With few rows and
// many ranks the last ones would have none: then nothing here works, and the layout has to be
// refused.
Shard VocabularyPart(int64_t vocabulary, int ranks, int rank);

struct VocabularyArgs {
  ParamId weight;  // [VocabularyPart rows, D]
  int64_t vocabulary;
  Communicator* group;
  OpLabel label;
};

// ids i32 [T], the same on every rank -> what this rank has between blocks: its run of the tokens
// [T/n, D], or all. Exact: one rank's row and zeros are added.
Var VocabularyEmbedding(Context& ctx, const Tensor& ids, const VocabularyArgs& args,
                        bool sequence_parallel = true);

// LinearCrossEntropy over the whole vocabulary. hidden [T, D] and args.targets are the same on
// every rank, and so are loss and logprobs; the loss counts once, not once per rank. hidden's
// gradient is a partial sum, which GatherTokens or CopyTokens completes. args.weight and args.cut
// are set here.
ops::LinearCrossEntropyResult VocabularyCrossEntropy(Context& ctx, const Var& hidden,
                                                     const VocabularyArgs& vocabulary,
                                                     ops::LinearCrossEntropyArgs args);

}  // namespace cadre
