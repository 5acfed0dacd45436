// Every layout trains what one process trains. In f64 the reference ops run end to end and leave no
// room but for the order of sums: gradients of step 1 within 1e-10 (relative L2, per parameter), 20
// losses within 1e-9. In f32 the production kernels run: gradients and losses within 1e-5, of a
// mixture until the step in which a token's experts first differ, which must have been a close
// choice: a mixture amplifies rounding where two experts are as good as equal, and only there.
#include <gtest/gtest.h>

#include "tests/layout_cases.h"

namespace cadre::testing_run {
namespace {

class Layouts : public testing::TestWithParam<Case> {
 protected:
  static void SetUpTestSuite() { runs_ = new Runs; }
  static void TearDownTestSuite() { delete runs_; }
  static inline Runs* runs_ = nullptr;
};

TEST_P(Layouts, ReferenceOpsAgreeWithOneProcess) {
  const Case& c = GetParam();
  const LayoutRun& expected = runs_->Reference(c, "f64");
  const LayoutRun got = runs_->Train(c, "f64");
  const Gap gap = LargestGap(expected, got);
  EXPECT_LE(gap.relative, 1e-10) << gap.parameter;
  EXPECT_LE(LargestLossGap(expected, got), 1e-9);
  EXPECT_LE(LargestEvaluationGap(expected, got), 1e-9);
}

TEST_P(Layouts, ProductionKernelsAgreeWithOneProcess) {
  const Case& c = GetParam();
  const LayoutRun& expected = runs_->Reference(c, "f32");
  const LayoutRun got = runs_->Train(c, "f32");
  const RoutingSplit split = FirstSplit(expected.spec, expected.routing, got.routing);
  EXPECT_LT(split.gap, kCloseChoice)
      << "step " << split.step << ", layer " << split.layer << ", token " << split.token;
  const size_t same = split.step < 0 ? kSteps : static_cast<size_t>(split.step);
  EXPECT_LE(LargestLossGap(expected, got, same), 1e-5);
  if (same == 0) return;
  const Gap gap = LargestGap(expected, got);
  EXPECT_LE(gap.relative, 1e-5) << gap.parameter;
}

INSTANTIATE_TEST_SUITE_P(
    DataParallel, Layouts,
    testing::Values(Case{"dense", 2, "zero_stage: 0"}, Case{"tied", 4, "zero_stage: 1"},
                    Case{"moe", 2, "zero_stage: 1"}, Case{"tied", 2, "zero_stage: 2"},
                    Case{"dense", 2, "zero_stage: 3"}, Case{"bias", 4, "zero_stage: 0"},
                    Case{"dense", 4, "zero_stage: 3, zero_group_size: 2"}));

INSTANTIATE_TEST_SUITE_P(
    TensorParallel, Layouts,
    testing::Values(Case{"dense", 2, "tensor_parallel_size: 2"},
                    Case{"dense", 4, "tensor_parallel_size: 4, zero_stage: 0"},
                    Case{"tied", 4, "tensor_parallel_size: 2, zero_stage: 3"},
                    Case{"norms", 4, "tensor_parallel_size: 4, zero_stage: 1"},
                    Case{"moe", 2, "tensor_parallel_size: 2, zero_stage: 0"},
                    Case{"moe", 4, "tensor_parallel_size: 2, expert_tensor_parallel_size: 1"},
                    Case{"oss", 2, "tensor_parallel_size: 2, zero_stage: 3"},
                    Case{"frozen", 4, "tensor_parallel_size: 2, zero_stage: 3"},
                    Case{"bias", 4, "tensor_parallel_size: 4, zero_stage: 1"}));

INSTANTIATE_TEST_SUITE_P(
    AllTokens, Layouts,
    testing::Values(Case{"tied", 4, "tensor_parallel_size: 2, sequence_parallel: false"},
                    Case{"moe", 2, "tensor_parallel_size: 2, sequence_parallel: false"},
                    Case{"bias", 4,
                         "tensor_parallel_size: 2, expert_parallel_size: 2, "
                         "expert_tensor_parallel_size: 1, sequence_parallel: false"}));

INSTANTIATE_TEST_SUITE_P(Ladder, Layouts,
                         testing::Values(Case{"dense/ladder", 2, "tensor_parallel_size: 2"},
                                         Case{"rungs", 4, "tensor_parallel_size: 2"},
                                         Case{"dense/ladder", 4,
                                              "pipeline_parallel_size: 2, tensor_parallel_size: 2, "
                                              "pipeline_schedule: zb_h1"}));

INSTANTIATE_TEST_SUITE_P(ExpertParallel, Layouts,
                         testing::Values(Case{"moe", 2, "expert_parallel_size: 2, zero_stage: 0"},
                                         Case{"moe", 4, "expert_parallel_size: 2, zero_stage: 2"},
                                         Case{"bias", 4,
                                              "expert_parallel_size: 4, tensor_parallel_size: 2, "
                                              "expert_tensor_parallel_size: 1"},
                                         Case{"moe", 4,
                                              "expert_parallel_size: 2, tensor_parallel_size: 2, "
                                              "expert_tensor_parallel_size: 2"},
                                         Case{"oss", 4,
                                              "expert_parallel_size: 2, "
                                              "expert_tensor_parallel_size: 2, zero_stage: 0"},
                                         Case{"oss", 8,
                                              "expert_parallel_size: 4, tensor_parallel_size: 2, "
                                              "expert_tensor_parallel_size: 1, zero_stage: 1"}));

INSTANTIATE_TEST_SUITE_P(ContextParallel, Layouts,
                         testing::Values(Case{"dense", 2, "context_parallel_size: 2"},
                                         Case{"bias", 4,
                                              "context_parallel_size: 2, tensor_parallel_size: 2, "
                                              "zero_stage: 0"},
                                         Case{"oss", 4,
                                              "context_parallel_size: 2, expert_parallel_size: 4, "
                                              "zero_stage: 1"},
                                         Case{"dense", 2,
                                              "context_parallel_size: 2, "
                                              "context_parallel_method: ring"}));

INSTANTIATE_TEST_SUITE_P(
    FullContext, Layouts,
    testing::Values(
        Case{"dense", 8, "context_parallel_size: 8, zero_stage: 1"},
        Case{"dense", 8, "context_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"tied", 4, "context_parallel_size: 2, zero_stage: 1"},
        Case{"tied", 8, "context_parallel_size: 4, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"moe", 2, "context_parallel_size: 2, expert_parallel_size: 2"},
        Case{"moe", 8, "context_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"moe", 8,
             "context_parallel_size: 2, tensor_parallel_size: 2, expert_parallel_size: 4, "
             "expert_tensor_parallel_size: 1"},
        Case{"norms", 2, "context_parallel_size: 2, zero_stage: 0"},
        Case{"norms", 4, "context_parallel_size: 2, tensor_parallel_size: 2"},
        Case{"oss", 4, "context_parallel_size: 4"},
        Case{"oss", 4, "context_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 0"},
        Case{"bias", 4, "context_parallel_size: 4, zero_stage: 1"},
        Case{"bias", 4,
             "context_parallel_size: 2, tensor_parallel_size: 2, sequence_parallel: false"},
        Case{"moe", 8,
             "context_parallel_size: 2, tensor_parallel_size: 2, sequence_parallel: false, "
             "expert_parallel_size: 4, expert_tensor_parallel_size: 2"},
        Case{"rungs", 4, "context_parallel_size: 2, zero_stage: 1"},
        Case{"norms", 4, "context_parallel_size: 4, context_parallel_method: ring"},
        Case{"bias", 4,
             "context_parallel_size: 2, tensor_parallel_size: 2, context_parallel_method: ring"},
        Case{"dense", 8,
             "context_parallel_size: 2, pipeline_parallel_size: 2, tensor_parallel_size: 2"},
        Case{"tied", 4,
             "context_parallel_size: 2, pipeline_parallel_size: 2, pipeline_schedule: gpipe"},
        Case{"bias", 8, "context_parallel_size: 4, expert_parallel_size: 8, zero_stage: 1"}));

INSTANTIATE_TEST_SUITE_P(
    Pipeline, Layouts,
    testing::Values(
        Case{"dense", 2, "pipeline_parallel_size: 2"},
        Case{"rungs", 2, "pipeline_parallel_size: 2, pipeline_schedule: zb_h1"},
        Case{"tied", 4,
             "pipeline_parallel_size: 2, pipeline_schedule: zb_h1, tensor_parallel_size: 2"},
        Case{"tied", 2,
             "pipeline_parallel_size: 2, pipeline_schedule: zb_v, pipeline_split: [0, 1, 1, 0]"},
        Case{"moe", 4,
             "pipeline_parallel_size: 2, pipeline_schedule: gpipe, expert_parallel_size: 2"},
        Case{"bias", 4,
             "pipeline_parallel_size: 2, pipeline_schedule: interleaved_1f1b, "
             "pipeline_split: [0, 1, 1, 0], zero_stage: 1"}));

INSTANTIATE_TEST_SUITE_P(
    Full, Layouts,
    testing::Values(
        Case{"dense", 8, "zero_stage: 1"}, Case{"dense", 8, "zero_stage: 0"},
        Case{"frozen", 4, "zero_stage: 2"},
        Case{"frozen", 4, "pipeline_parallel_size: 2, pipeline_schedule: zb_h1, zero_stage: 3"},
        Case{"frozen-moe", 4, "tensor_parallel_size: 2, expert_parallel_size: 2"},
        Case{"frozen-moe", 4, "expert_parallel_size: 4, zero_stage: 3"},
        Case{"dense", 8,
             "pipeline_parallel_size: 2, tensor_parallel_size: 2, pipeline_schedule: zb_h1"},
        Case{"dense", 2, "pipeline_parallel_size: 2, pipeline_schedule: gpipe"},
        Case{"tied", 4, "pipeline_parallel_size: 4, pipeline_split: [0, 1, 1, 0]"},
        Case{"tied", 8, "pipeline_parallel_size: 2, zero_stage: 1"},
        Case{"tied", 8,
             "pipeline_parallel_size: 2, tensor_parallel_size: 2, sequence_parallel: false, "
             "context_parallel_size: 2"},
        Case{"dense", 4, "pipeline_parallel_size: 2, context_parallel_size: 2"},
        Case{"norms", 4,
             "pipeline_parallel_size: 2, expert_parallel_size: 2, "
             "pipeline_schedule: zb_v, pipeline_split: [0, 1, 1, 0]"},
        Case{"moe", 8,
             "pipeline_parallel_size: 2, tensor_parallel_size: 2, "
             "expert_tensor_parallel_size: 1, expert_parallel_size: 4"},
        Case{"oss", 4, "pipeline_parallel_size: 2, tensor_parallel_size: 2"},
        Case{"bias", 2, "pipeline_parallel_size: 2, pipeline_schedule: zb_h1"},
        Case{"bias", 8, "pipeline_parallel_size: 2, expert_parallel_size: 2, zero_stage: 1"},
        Case{"dense", 8, "zero_stage: 3, zero_prefetch: 3"},
        Case{"dense", 4, "pipeline_parallel_size: 2, zero_stage: 3"},
        Case{"tied", 4, "pipeline_parallel_size: 2, zero_stage: 2"},
        Case{"tied", 8, "pipeline_parallel_size: 2, zero_stage: 3, zero_group_size: 2"},
        Case{"dense", 8, "tensor_parallel_size: 2, zero_stage: 2"},
        Case{"tied", 4, "zero_stage: 3, zero_prefetch: 0"},
        Case{"tied", 4, "context_parallel_size: 2, zero_stage: 3"},
        Case{"norms", 4, "tensor_parallel_size: 2, zero_stage: 3"},
        Case{"moe", 8, "expert_parallel_size: 4, zero_stage: 3"},
        Case{"oss", 4, "tensor_parallel_size: 2, zero_stage: 3"}, Case{"bias", 4, "zero_stage: 3"},
        Case{"tied", 8, "tensor_parallel_size: 2, zero_stage: 1, zero_group_size: 2"},
        Case{"moe", 8, "expert_parallel_size: 2, zero_stage: 3, zero_group_size: 4"},
        Case{"oss", 8, "expert_parallel_size: 4, zero_stage: 2, zero_group_size: 2"},
        Case{"bias", 8,
             "expert_parallel_size: 4, tensor_parallel_size: 2, "
             "expert_tensor_parallel_size: 1, zero_stage: 2"},
        Case{"dense", 8, "tensor_parallel_size: 2, zero_stage: 1"},
        Case{"dense", 8, "tensor_parallel_size: 4, zero_stage: 0"},
        Case{"dense", 4, "tensor_parallel_size: 4, sequence_parallel: false, zero_stage: 0"},
        Case{"norms", 4, "tensor_parallel_size: 4, sequence_parallel: false"},
        Case{"oss", 2, "tensor_parallel_size: 2, sequence_parallel: false"},
        Case{"oss", 4, "tensor_parallel_size: 4, sequence_parallel: false"},
        Case{"oss/ladder", 4, "tensor_parallel_size: 4"},
        Case{"bias", 8, "tensor_parallel_size: 4, sequence_parallel: false, zero_stage: 0"},
        Case{"moe", 4,
             "tensor_parallel_size: 2, expert_tensor_parallel_size: 1, sequence_parallel: false"},
        Case{"moe", 4,
             "tensor_parallel_size: 2, expert_parallel_size: 2, expert_tensor_parallel_size: 2, "
             "sequence_parallel: false"},
        Case{"dense/ladder", 4, "tensor_parallel_size: 4, zero_stage: 0"},
        Case{"dense/ladder", 4, "tensor_parallel_size: 2, sequence_parallel: true"},
        Case{"rungs", 2, "zero_stage: 1"}, Case{"moe/ladder", 2, "tensor_parallel_size: 2"},
        Case{"moe/ladder", 4, "expert_parallel_size: 2"},
        Case{"moe/ladder", 4,
             "tensor_parallel_size: 2, expert_parallel_size: 4, expert_tensor_parallel_size: 1"},
        Case{"bias/ladder", 8, "tensor_parallel_size: 4"},
        Case{"rungs", 2, "pipeline_parallel_size: 2"},
        Case{"rungs", 8, "pipeline_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"moe/ladder", 4,
             "pipeline_parallel_size: 2, expert_parallel_size: 2, pipeline_schedule: gpipe"},
        Case{"moe", 4,
             "pipeline_parallel_size: 2, tensor_parallel_size: 2, sequence_parallel: false"},
        Case{"moe/ladder", 4, "tensor_parallel_size: 2, context_parallel_size: 2"},
        Case{"tied", 2, "tensor_parallel_size: 2"},
        Case{"tied", 8, "tensor_parallel_size: 4, zero_stage: 1"},
        Case{"norms", 2, "tensor_parallel_size: 2, zero_stage: 0"},
        Case{"norms", 8, "tensor_parallel_size: 2, zero_stage: 1"},
        Case{"norms", 4, "expert_parallel_size: 4"},
        Case{"moe", 8, "expert_parallel_size: 8, zero_stage: 0"},
        Case{"moe", 8, "expert_parallel_size: 4, zero_stage: 1"},
        Case{"moe", 8,
             "expert_parallel_size: 4, tensor_parallel_size: 2, expert_tensor_parallel_size: 1"},
        Case{"moe", 4,
             "expert_parallel_size: 2, tensor_parallel_size: 2, expert_tensor_parallel_size: 1"},
        Case{"moe", 4, "tensor_parallel_size: 4"},
        Case{"moe", 4, "tensor_parallel_size: 4, expert_tensor_parallel_size: 1"},
        Case{"moe", 8, "tensor_parallel_size: 4, zero_stage: 1"},
        Case{"moe", 8,
             "expert_parallel_size: 2, tensor_parallel_size: 4, expert_tensor_parallel_size: 2"},
        Case{"moe", 4, "tensor_parallel_size: 4, expert_tensor_parallel_size: 2"},
        Case{"moe", 4, "expert_tensor_parallel_size: 4, zero_stage: 0"},
        Case{"moe", 8,
             "expert_parallel_size: 2, tensor_parallel_size: 2, expert_tensor_parallel_size: 4"},
        Case{"norms", 8, "expert_parallel_size: 4, expert_tensor_parallel_size: 2"},
        Case{"norms", 8, "expert_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"oss", 8, "expert_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 1"},
        Case{"oss", 4, "tensor_parallel_size: 2, expert_tensor_parallel_size: 4"},
        Case{"bias", 8, "expert_parallel_size: 2, tensor_parallel_size: 2, zero_stage: 0"},
        Case{"oss", 2, "expert_parallel_size: 2"}, Case{"oss", 4, "tensor_parallel_size: 4"},
        Case{"oss", 8, "tensor_parallel_size: 4, zero_stage: 0"},
        Case{"oss", 4, "tensor_parallel_size: 2, expert_tensor_parallel_size: 1"},
        Case{"bias", 2, "tensor_parallel_size: 2"}, Case{"bias", 2, "expert_parallel_size: 2"},
        Case{"bias", 8, "expert_parallel_size: 8, zero_stage: 1"},
        Case{"bias", 8,
             "expert_parallel_size: 2, tensor_parallel_size: 4, expert_tensor_parallel_size: 1"}));

// Sizes that are no powers of two.
INSTANTIATE_TEST_SUITE_P(
    OddWorlds, Layouts,
    testing::Values(
        Case{"sixes", 3, "tensor_parallel_size: 3, zero_stage: 1", {8, 48}},
        Case{"sixes-moe",
             6,
             "pipeline_parallel_size: 2, pipeline_schedule: zb_h1, expert_parallel_size: 3",
             {6, 32}}));

INSTANTIATE_TEST_SUITE_P(
    FullOddWorlds, Layouts,
    testing::Values(
        Case{"dense", 3, "zero_stage: 0", {9, 32}}, Case{"tied", 3, "zero_stage: 2", {9, 32}},
        Case{"bias", 3, "zero_stage: 1", {9, 32}},
        Case{"dense", 3, "pipeline_parallel_size: 3, pipeline_split: [0, 1, 1]"},
        Case{"rungs", 3, "pipeline_parallel_size: 3, pipeline_schedule: zb_h1"},
        Case{"rungs", 3,
             "pipeline_parallel_size: 3, pipeline_schedule: gpipe, pipeline_split: [0, 2, 1]"},
        Case{"deep", 3, "pipeline_parallel_size: 3, pipeline_schedule: zb_h1"},
        Case{"deep",
             3,
             "pipeline_parallel_size: 3, pipeline_schedule: interleaved_1f1b, "
             "pipeline_split: [0, 1, 1, 1, 1, 1]",
             {9, 32}},
        Case{"deep", 3,
             "pipeline_parallel_size: 3, pipeline_schedule: zb_v, "
             "pipeline_split: [1, 1, 1, 1, 1, 0]"},
        Case{"sixes", 3, "tensor_parallel_size: 3, sequence_parallel: false, zero_stage: 0"},
        Case{"sixes/ladder", 3, "tensor_parallel_size: 3", {8, 48}},
        Case{"sixes-moe", 3, "tensor_parallel_size: 3", {8, 48}},
        Case{"sixes-moe", 3, "expert_tensor_parallel_size: 3", {9, 32}},
        Case{"sixes-bias", 3, "tensor_parallel_size: 3, zero_stage: 3", {8, 48}},
        Case{"dense", 3, "context_parallel_size: 3, zero_stage: 1", {8, 48}},
        Case{"tied", 3, "context_parallel_size: 3, context_parallel_method: ring", {8, 48}},
        Case{"bias", 3, "context_parallel_size: 3, context_parallel_method: ring", {8, 48}},
        Case{"oss", 3, "context_parallel_size: 3, zero_stage: 0", {8, 48}},
        Case{"sixes-moe", 3, "expert_parallel_size: 3, zero_stage: 2", {9, 32}},
        Case{"sixes-bias", 3, "expert_parallel_size: 3, context_parallel_size: 3", {8, 48}},
        Case{"dense", 5, "zero_stage: 3", {10, 32}}, Case{"moe", 5, "zero_stage: 1", {10, 32}},
        Case{"tied", 5, "context_parallel_size: 5, zero_stage: 2", {8, 40}},
        Case{"rungs", 6, "pipeline_parallel_size: 3, zero_stage: 1"},
        Case{"deep", 6, "pipeline_parallel_size: 3, zero_stage: 2"},
        Case{"deep", 6, "pipeline_parallel_size: 2, tensor_parallel_size: 3", {8, 48}},
        Case{"sixes", 6, "pipeline_parallel_size: 2, tensor_parallel_size: 3", {8, 48}},
        Case{"sixes", 6, "tensor_parallel_size: 6, zero_stage: 1", {8, 48}},
        Case{"sixes", 6, "tensor_parallel_size: 3, zero_stage: 3", {8, 48}},
        Case{"dense", 6, "context_parallel_size: 3, tensor_parallel_size: 2", {8, 48}},
        Case{"tied", 6, "zero_stage: 3, zero_group_size: 3", {12, 32}},
        Case{"dense", 6, "zero_stage: 2, zero_group_size: 2", {12, 32}},
        Case{"sixes-moe",
             6,
             "tensor_parallel_size: 2, expert_parallel_size: 3, expert_tensor_parallel_size: 1",
             {9, 48}},
        Case{"sixes-moe", 6, "expert_parallel_size: 2, expert_tensor_parallel_size: 3", {12, 32}},
        Case{"sixes-bias",
             6,
             "tensor_parallel_size: 3, expert_parallel_size: 6, expert_tensor_parallel_size: 1",
             {8, 48}},
        Case{"bias", 7, "zero_stage: 1", {14, 32}}, Case{"dense", 7, "zero_stage: 3", {7, 32}},
        Case{"deep", 5, "pipeline_parallel_size: 5, pipeline_schedule: gpipe"},
        Case{"deep", 7,
             "pipeline_parallel_size: 7, pipeline_split: [0, 1, 1, 1, 1, 1, 0], "
             "pipeline_schedule: zb_h1"},
        Case{"dense", 7, "context_parallel_size: 7", {8, 56}}));

}  // namespace
}  // namespace cadre::testing_run
