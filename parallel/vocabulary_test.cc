#include "parallel/vocabulary.h"

#include <gtest/gtest.h>

#include "core/ops/embedding.h"
#include "parallel/test_rig.h"
#include "parallel/token_ops.h"

namespace cadre {
namespace {

constexpr int64_t kVocabulary = 23, kTokens = 12, kWidth = 8;  // 12 is a multiple of 1, 2, 3, 4
constexpr DType kTypes[] = {DType::kF64, DType::kF32, DType::kBF16};

TEST(VocabularyPart, RowsAreInOrderAndTheLastPartIsShort) {
  int64_t next = 0;
  for (const auto& [rank, rows] : {std::pair{0, 6}, {1, 6}, {2, 6}, {3, 5}}) {
    EXPECT_EQ(VocabularyPart(kVocabulary, 4, rank).begin, next);
    EXPECT_EQ(VocabularyPart(kVocabulary, 4, rank).numel, rows);
    next += rows;
  }
  EXPECT_EQ(VocabularyPart(5, 4, 3).numel, 0);
  EXPECT_EQ(VocabularyPart(kVocabulary, 1, 0).numel, kVocabulary);
}

// A rank's rows of a table that all ranks know.
ParamId AddTable(RankRig& rig, DType dtype) {
  const Shard part = VocabularyPart(kVocabulary, rig.size(), rig.rank());
  const ParamId id = rig.store.Add({.name = "table", .shape = {part.numel, kWidth}});
  rig.store.Allocate(rig.memory, dtype, {.gradients = true});
  const Tensor table = Random(rig.memory, {kVocabulary, kWidth}, dtype, 1);
  const Tensor mine = table.Narrow(part.begin, part.numel),
               weight = rig.store.Acquire(id, Lease::kForward);
  std::copy_n(mine.raw(), mine.bytes(), weight.raw());
  rig.store.Release(id, Lease::kForward);
  return id;
}

Tensor Ids(RankRig& rig, bool with_gaps) {
  std::vector<int32_t> ids;
  for (int32_t t = 0; t < kTokens; ++t) ids.push_back(t * 7 % kVocabulary);
  ids[3] = ids[8];
  if (with_gaps) ids[0] = ids[6] = -1;
  return Tensor::Of<int32_t>(rig.memory, {kTokens}, ids);
}

struct Outcome {
  Tensor output;       // [T / n, D] of the embedding, logprobs of the loss
  Tensor hidden_grad;  // [T / n, D]
  Tensor weight_grad;  // this rank's rows
  double loss = 0, cross_entropy = 0, z_loss = 0;
};

Outcome Embed(RankRig& rig, DType dtype) {
  const ParamId weight = AddTable(rig, dtype);
  Var y = VocabularyEmbedding(rig.ctx, Ids(rig, false),
                              {weight, kVocabulary, rig.groups.tp, {"embedding"}});
  rig.tape.Seed(y.slot, rig.Mine(Random(rig.memory, {kTokens, kWidth}, dtype, 2)));
  rig.tape.Backward(rig.ctx);
  return {.output = y.value, .weight_grad = rig.store.Gradient(weight)};
}

Outcome Lose(RankRig& rig, DType dtype) {
  const ParamId weight = AddTable(rig, dtype);
  Var x = rig.Input(rig.Mine(Random(rig.memory, {kTokens, kWidth}, dtype, 3)));
  Var hidden = GatherTokens(rig.ctx, x, rig.groups.tp, {"head"});
  auto result = VocabularyCrossEntropy(
      rig.ctx, hidden, {weight, kVocabulary, rig.groups.tp, {"head"}},
      {.targets = Ids(rig, true), .scale = 1.0 / 10, .z_coefficient = 0.05, .chunk_rows = 5});
  const std::vector<double> one = {1.0};
  rig.tape.Seed(result.loss.slot, Tensor::Of<double>(rig.memory, {1}, one));
  rig.tape.Backward(rig.ctx);
  return {result.logprobs,
          rig.GradOf(x),
          rig.store.Gradient(weight),
          result.loss.value.data<double>()[0],
          result.cross_entropy,
          result.z_loss};
}

class Vocabulary : public testing::TestWithParam<int> {
 protected:
  // `body` on n ranks, each beside what one process gives.
  static void AgreesWithOne(const std::function<Outcome(RankRig&, DType)>& body,
                            const std::function<void(RankRig&, const Outcome& got,
                                                     const Outcome& one, double)>& compare) {
    for (const DType dtype : kTypes) {
      RunRigs(GetParam(), [&](RankRig& rig) {
        Outcome got = body(rig, dtype);
        EXPECT_TRUE(rig.groups.failure.ok());
        RunRigs(1, [&](RankRig& alone) {
          compare(rig, got, body(alone, dtype), dtype == DType::kF64 ? 1e-12 : ToleranceOf(dtype));
        });
      });
    }
  }
  static Tensor MyRows(const RankRig& rig, const Tensor& table) {
    const Shard part = VocabularyPart(kVocabulary, rig.size(), rig.rank());
    return table.Narrow(part.begin, part.numel);
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, Vocabulary, testing::Values(1, 2, 3, 4));

TEST_P(Vocabulary, EmbeddingIsThatOfOneProcess) {
  AgreesWithOne(Embed, [](RankRig& rig, const Outcome& got, const Outcome& one, double) {
    EXPECT_EQ(Distance(got.output, rig.Mine(one.output)), 0);
    EXPECT_EQ(Distance(got.weight_grad, MyRows(rig, one.weight_grad)), 0);
  });
}

TEST_P(Vocabulary, LossAndGradientsAreThoseOfOneProcess) {
  AgreesWithOne(Lose, [](RankRig& rig, const Outcome& got, const Outcome& one, double tolerance) {
    EXPECT_NEAR(got.loss, one.loss, tolerance * one.loss);
    EXPECT_NEAR(got.cross_entropy, one.cross_entropy, tolerance * one.cross_entropy);
    EXPECT_NEAR(got.z_loss, one.z_loss, tolerance * one.z_loss);
    EXPECT_LE(Distance(got.output, one.output), tolerance);
    EXPECT_LE(Distance(got.hidden_grad, rig.Mine(one.hidden_grad)), tolerance);
    EXPECT_LE(Distance(got.weight_grad, MyRows(rig, one.weight_grad)), tolerance);
  });
}

// Every part's maximum is another; the logits are far apart, so that no fold by the wrong one
// passes.
TEST_P(Vocabulary, LargeLogitsStayFinite) {
  RunRigs(GetParam(), [](RankRig& rig) {
    const ParamId weight = AddTable(rig, DType::kF32);
    const Tensor w = rig.store.Acquire(weight, Lease::kForward);
    const Shard part = VocabularyPart(kVocabulary, rig.size(), rig.rank());
    for (int64_t i = 0; i < w.numel(); ++i) {
      w.data<float>()[i] = static_cast<float>(100 * (part.begin + i / kWidth));
    }
    Tensor hidden = Tensor::Zeros(rig.memory, {1, kWidth}, DType::kF32);
    hidden.data<float>()[0] = 1;
    const std::vector<int32_t> target = {kVocabulary - 2};
    rig.ctx.tape = nullptr;
    auto result =
        VocabularyCrossEntropy(rig.ctx, {hidden}, {weight, kVocabulary, rig.groups.tp, {"head"}},
                               {.targets = Tensor::Of<int32_t>(rig.memory, {1}, target)});
    EXPECT_EQ(result.logprobs.data<float>()[0], -100);
    rig.store.Release(weight, Lease::kForward);
  });
}

}  // namespace
}  // namespace cadre
