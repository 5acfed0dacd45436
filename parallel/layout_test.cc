#include "parallel/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "proto/parallel_config.pb.h"

namespace cadre {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

config::ParallelConfig Config(int tp, int cp, int pp, int dp = 0) {
  config::ParallelConfig config;
  config.set_tensor_parallel_size(tp);
  config.set_context_parallel_size(cp);
  config.set_pipeline_parallel_size(pp);
  config.set_data_parallel_size(dp);
  return config;
}

// A mixture whose numbers fit small sizes; `change` spoils one.
LayoutNeeds Needs(void (*change)(LayoutNeeds*) = [](LayoutNeeds*) {}) {
  LayoutNeeds needs = {.num_layers = 8,
                       .num_moe_layers = 7,
                       .num_attention_heads = 8,
                       .num_key_value_heads = 2,
                       .vocab_size = 512,
                       .intermediate_size = 64,
                       .num_experts = 8,
                       .moe_intermediate_size = 32,
                       .shared_expert_intermediate_size = 32,
                       .seq_len = 64,
                       .global_batch_size = 32,
                       .micro_batch_size = 2};
  change(&needs);
  return needs;
}

Layout Resolved(const config::ParallelConfig& config, int world,
                const LayoutNeeds& needs = LayoutNeeds()) {
  auto layout = ResolveLayout(config, world, needs);
  CADRE_CHECK(layout.ok(), "{}", Message(layout.status()));
  return *layout;
}

std::string Refusal(const config::ParallelConfig& config, int world,
                    const LayoutNeeds& needs = Needs()) {
  auto layout = ResolveLayout(config, world, needs);
  EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
  return Message(layout.status());
}

TEST(Layout, OneRankIsTheDefault) {
  const Layout layout = Resolved(config::ParallelConfig(), 1, Needs());
  EXPECT_EQ(layout.world(), 1);
  EXPECT_EQ(layout.edp, 1);
  EXPECT_FALSE(layout.sequence_parallel);
  EXPECT_THAT(layout.stage_layers, ElementsAre(8));
  EXPECT_EQ(layout.microbatches, 16);
}

TEST(Layout, DataParallelTakesWhatTheWorldLeaves) {
  const Layout layout = Resolved(Config(2, 1, 2), 16, Needs());
  EXPECT_EQ(layout.dp, 4);
  EXPECT_EQ(layout.world(), 16);
  EXPECT_TRUE(layout.sequence_parallel);
  EXPECT_EQ(layout.microbatches, 4);
  EXPECT_THAT(layout.stage_layers, ElementsAre(4, 4));
}

TEST(Layout, ExpertsAreSharedAsTensorsUnlessSaidOtherwise) {
  config::ParallelConfig config = Config(2, 1, 1);
  config.set_expert_parallel_size(2);
  Layout layout = Resolved(config, 8, Needs());
  EXPECT_EQ(layout.etp, 2);
  EXPECT_EQ(layout.edp, 2);
  config.set_expert_tensor_parallel_size(1);
  config.set_expert_parallel_size(8);
  layout = Resolved(config, 8, Needs());
  EXPECT_EQ(layout.etp, 1);
  EXPECT_EQ(layout.edp, 1);
}

TEST(Layout, AScheduleHasItsStages) {
  config::ParallelConfig config = Config(1, 1, 2);
  config.set_pipeline_schedule(config::PIPELINE_SCHEDULE_ZB_V);
  EXPECT_EQ(Resolved(config, 4, Needs()).stages(), 4);
}

TEST(Layout, RefusesWhatWouldDoNothing) {
  config::ParallelConfig config = Config(2, 1, 1);
  config.set_context_parallel_method(config::CONTEXT_PARALLEL_METHOD_RING);
  EXPECT_EQ(Refusal(config, 4),
            "context_parallel_method: ring does nothing with context_parallel_size 1; allowed: "
            "all_gather");
  config.set_context_parallel_size(2);
  EXPECT_TRUE(Resolved(config, 4, Needs()).ring);

  config = Config(1, 1, 1);
  config.set_pipeline_schedule(config::PIPELINE_SCHEDULE_ZB_V);
  EXPECT_EQ(Refusal(config, 4),
            "pipeline_schedule: zb_v does nothing with pipeline_parallel_size 1; allowed: 1f1b");

  config = Config(1, 1, 1);
  for (const int stage : {0, 1, 2}) {
    config.set_zero_stage(stage);
    for (const int layers : {0, 4}) {
      config.set_zero_prefetch(layers);
      EXPECT_EQ(Refusal(config, 4),
                fmt::format("zero_prefetch {} does nothing with zero_stage {}, which gathers no "
                            "weights; allowed: 1, or zero_stage 3",
                            layers, stage));
    }
  }
  config.set_zero_stage(3);
  EXPECT_EQ(Resolved(config, 4, Needs()).zero_stage, 3);
}

TEST(Layout, RefusesTensorsOfExpertsWhereThereAreNone) {
  const LayoutNeeds dense = Needs([](LayoutNeeds* n) { n->num_moe_layers = 0; });
  config::ParallelConfig config = Config(2, 1, 1);
  for (const int size : {1, 2}) {
    config.set_expert_tensor_parallel_size(size);
    EXPECT_EQ(
        Refusal(config, 4, dense),
        fmt::format("expert_tensor_parallel_size {}: the model has no experts; allowed: 0", size));
  }
}

// A run's config.yaml has every default, and an elastic job may shrink to one rank.
TEST(Layout, TakesDefaultsAndWhatOtherWorldsUse) {
  config::ParallelConfig config = Config(1, 1, 1);
  config.set_context_parallel_method(config::CONTEXT_PARALLEL_METHOD_ALL_GATHER);
  config.set_pipeline_schedule(config::PIPELINE_SCHEDULE_1F1B);
  config.set_virtual_pipeline_size(0);
  config.set_zero_prefetch(1);
  config.set_expert_tensor_parallel_size(0);
  EXPECT_EQ(Resolved(config, 1, Needs([](LayoutNeeds* n) { n->num_moe_layers = 0; })).world(), 1);
  config.set_zero_stage(3);
  config.set_zero_prefetch(4);
  config.set_zero_group_size(1);
  EXPECT_EQ(Resolved(config, 1, Needs()).world(), 1);
}

TEST(Layout, RefusesWhatTheWorldCannotHold) {
  EXPECT_EQ(Refusal(Config(3, 1, 2), 8),
            "tensor_parallel_size 3: 3 x pipeline 2 x context 1 = 6 does not divide a world of 8");
  EXPECT_EQ(
      Refusal(Config(2, 1, 2, 3), 8),
      "data_parallel_size 3: 3 x tensor 2 x pipeline 2 x context 1 = 12, but the world has 8");
  EXPECT_EQ(
      Refusal(Config(16, 1, 1), 8),
      "tensor_parallel_size 16: 16 x pipeline 1 x context 1 = 16 does not divide a world of 8");
  EXPECT_EQ(Refusal(Config(16384, 16384, 16384, 16384), 8),
            "data_parallel_size 16384: 16384 x tensor 16384 x pipeline 16384 x context 16384 = "
            "72057594037927936, but the world has 8");
}

TEST(Layout, RefusesSizesOutOfRangeWhoeverFilledThem) {
  EXPECT_EQ(Refusal(Config(0, 1, 1), 8),
            "tensor_parallel_size: 0 is out of range; allowed: 1 to 16384");
  EXPECT_EQ(Refusal(Config(1, 1, -2), 8),
            "pipeline_parallel_size: -2 is out of range; allowed: 1 to 16384");
  EXPECT_EQ(Refusal(Config(1, 20000, 1), 8),
            "context_parallel_size: 20000 is out of range; allowed: 1 to 16384");
}

TEST(Layout, RefusesHeadsThatDoNotDivide) {
  EXPECT_EQ(Refusal(Config(4, 1, 1), 8, Needs([](LayoutNeeds* n) { n->num_attention_heads = 6; })),
            "num_attention_heads 6 is not a multiple of tensor_parallel_size 4");
  EXPECT_EQ(Refusal(Config(8, 1, 1), 8, Needs([](LayoutNeeds* n) { n->num_attention_heads = 4; })),
            "num_attention_heads 4 is less than tensor_parallel_size 8");
  EXPECT_EQ(Refusal(Config(4, 1, 1), 8, Needs([](LayoutNeeds* n) {
                      n->num_attention_heads = 12;
                      n->num_key_value_heads = 6;
                    })),
            "num_key_value_heads 6 is neither a multiple of tensor_parallel_size 4 nor divides it");
  EXPECT_EQ(Resolved(Config(4, 1, 1), 8, Needs()).tp, 4) << "2 key/value heads, each on 2 ranks";
}

TEST(Layout, RefusesWidthsThatDoNotDivide) {
  const config::ParallelConfig config = Config(4, 1, 1);
  EXPECT_EQ(Refusal(config, 4, Needs([](LayoutNeeds* n) { n->intermediate_size = 66; })),
            "intermediate_size 66 is not a multiple of tensor_parallel_size 4");
  EXPECT_EQ(
      Refusal(config, 4, Needs([](LayoutNeeds* n) { n->shared_expert_intermediate_size = 6; })),
      "shared_expert_intermediate_size 6 is not a multiple of tensor_parallel_size 4");
  EXPECT_EQ(Refusal(config, 4, Needs([](LayoutNeeds* n) { n->moe_intermediate_size = 6; })),
            "moe_intermediate_size 6 is not a multiple of expert_tensor_parallel_size 4");
  EXPECT_EQ(Refusal(config, 4, Needs([](LayoutNeeds* n) { n->vocab_size = 3; })),
            "vocab_size 3: 1 rows on each of tensor_parallel_size 4 ranks leave none for the last");
}

TEST(Layout, RefusesExpertsThatDoNotDivide) {
  config::ParallelConfig config = Config(2, 1, 1);
  config.set_expert_parallel_size(4);
  EXPECT_EQ(Refusal(config, 4),
            "expert_parallel_size 4: 4 x expert_tensor_parallel_size 2 = 8 does not divide tensor "
            "2 x context 1 x data 2 = 4");
  config.set_expert_tensor_parallel_size(1);
  EXPECT_EQ(Refusal(config, 4, Needs([](LayoutNeeds* n) { n->num_experts = 6; })),
            "num_experts 6 is not a multiple of expert_parallel_size 4");
  EXPECT_EQ(Refusal(config, 4, Needs([](LayoutNeeds* n) { n->num_moe_layers = 0; })),
            "expert_parallel_size 4: the model has no experts; allowed: 1");
}

TEST(Layout, RefusesSequencesThatDoNotDivide) {
  EXPECT_EQ(Refusal(Config(1, 4, 1), 4, Needs([](LayoutNeeds* n) { n->seq_len = 12; })),
            "seq_len 12 is not a multiple of 2 x context_parallel_size 4 = 8");
  EXPECT_EQ(Refusal(Config(8, 1, 1), 8, Needs([](LayoutNeeds* n) { n->seq_len = 12; })),
            "seq_len 12 is not a multiple of context_parallel_size 1 x tensor_parallel_size 8 = 8, "
            "as sequence_parallel needs");
  config::ParallelConfig config = Config(8, 1, 1);
  config.set_sequence_parallel(false);
  EXPECT_FALSE(
      Resolved(config, 8, Needs([](LayoutNeeds* n) { n->seq_len = 12; })).sequence_parallel);
  EXPECT_EQ(Resolved(Config(1, 1, 1), 1, Needs([](LayoutNeeds* n) { n->seq_len = 13; })).cp, 1);
}

TEST(Layout, SequencesAreSplitForExpertsThatTensorRanksDoNotShare) {
  config::ParallelConfig config = Config(4, 1, 1);
  config.set_sequence_parallel(false);
  const LayoutNeeds odd = Needs([](LayoutNeeds* n) { n->seq_len = 13; });
  EXPECT_EQ(Resolved(config, 4, odd).etp, 4);
  config.set_expert_tensor_parallel_size(1);
  EXPECT_EQ(Refusal(config, 4, odd),
            "seq_len 13 is not a multiple of context_parallel_size 1 x tensor_parallel_size 4 = 4, "
            "as expert parallelism needs");
}

TEST(Layout, LadderLayersWantAllTokensUnlessSaidOtherwise) {
  config::ParallelConfig config = Config(2, 1, 1);
  const LayoutNeeds ladder = Needs([](LayoutNeeds* n) { n->ladder = true; });
  EXPECT_FALSE(Resolved(config, 2, ladder).sequence_parallel);
  config.set_sequence_parallel(true);
  EXPECT_TRUE(Resolved(config, 2, ladder).sequence_parallel);
}

TEST(Layout, RefusesBatchesThatDoNotDivide) {
  EXPECT_EQ(Refusal(Config(1, 1, 1), 8, Needs([](LayoutNeeds* n) { n->global_batch_size = 24; })),
            "global_batch_size 24 is not a multiple of data_parallel_size 8 x micro_batch_size 2 = "
            "16");
}

TEST(Layout, RefusesMoreStagesThanLayers) {
  EXPECT_EQ(Refusal(Config(1, 1, 16), 16),
            "num_hidden_layers 8: fewer than pipeline_parallel_size 16 x 1 stage on each = 16");
  config::ParallelConfig config = Config(1, 1, 4);
  config.set_pipeline_schedule(config::PIPELINE_SCHEDULE_INTERLEAVED_1F1B);
  config.set_virtual_pipeline_size(3);
  EXPECT_EQ(Refusal(config, 4),
            "num_hidden_layers 8: fewer than pipeline_parallel_size 4 x 3 stages on each = 12");
}

TEST(Layout, RefusesStagesThatAScheduleDoesNotHave) {
  config::ParallelConfig config = Config(1, 1, 2);
  config.set_virtual_pipeline_size(2);
  EXPECT_EQ(Refusal(config, 2), "virtual_pipeline_size 2: 2 stages on each rank: 1f1b takes 1");
  config.set_pipeline_schedule(config::PIPELINE_SCHEDULE_INTERLEAVED_1F1B);
  config.set_virtual_pipeline_size(1);
  EXPECT_EQ(Refusal(config, 2),
            "virtual_pipeline_size 1: 1 stage on each rank: interleaved_1f1b takes 2 or more");
  config = Config(1, 1, 1);
  config.set_virtual_pipeline_size(2);
  EXPECT_EQ(Refusal(config, 2),
            "virtual_pipeline_size 2: pipeline_parallel_size is 1; allowed: 0, 1");
}

TEST(Layout, RefusesMicrobatchesThatAScheduleDoesNotTake) {
  config::ParallelConfig config = Config(1, 1, 4);
  config.set_pipeline_schedule(config::PIPELINE_SCHEDULE_INTERLEAVED_1F1B);
  EXPECT_EQ(Refusal(config, 8, Needs([](LayoutNeeds* n) { n->global_batch_size = 24; })),
            "global_batch_size 24 / (data_parallel_size 2 x micro_batch_size 2): 6 microbatches "
            "over 4 pipeline ranks: interleaved_1f1b takes multiples of the pipeline's ranks; the "
            "nearest is 8");
}

TEST(Layout, TakesAGivenSplit) {
  config::ParallelConfig config = Config(1, 1, 4);
  for (const int layers : {0, 3, 4, 1}) config.add_pipeline_split(layers);
  EXPECT_THAT(Resolved(config, 4, Needs()).stage_layers, ElementsAre(0, 3, 4, 1));
  config.set_pipeline_split(3, 2);
  EXPECT_EQ(Refusal(config, 4), "pipeline_split: adds up to 9 layers, but the model has 8");
  config.set_pipeline_split(1, 0);
  EXPECT_EQ(Refusal(config, 4),
            "pipeline_split[1]: 0 layers; only the first and the last stage may hold none");
  config.add_pipeline_split(1);
  EXPECT_EQ(Refusal(config, 4), "pipeline_split: 5 numbers for 4 stages");
}

TEST(Layout, TheEvenSplitCountsEmbeddingAndHead) {
  LayoutNeeds needs = Needs();
  EXPECT_THAT(Resolved(Config(1, 1, 3), 3, needs).stage_layers, ElementsAre(2, 3, 3));
  needs.head_layers = 1.5;
  EXPECT_THAT(Resolved(Config(1, 1, 3), 3, needs).stage_layers, ElementsAre(3, 3, 2));
  needs.embedding_layers = 0.5;
  needs.head_layers = 2;
  EXPECT_THAT(Resolved(Config(1, 1, 2), 2, needs).stage_layers, ElementsAre(5, 3));
  needs.head_layers = 20;
  EXPECT_THAT(Resolved(Config(1, 1, 2), 2, needs).stage_layers, ElementsAre(7, 1));
}

TEST(Layout, RanksCountTensorThenContextThenDataThenPipeline) {
  const Layout layout = Resolved(Config(2, 2, 2, 2), 16);
  EXPECT_THAT(GroupRanks(layout, Axis::kTp, 5), ElementsAre(4, 5));
  EXPECT_THAT(GroupRanks(layout, Axis::kCp, 5), ElementsAre(5, 7));
  EXPECT_THAT(GroupRanks(layout, Axis::kTpCp, 5), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(GroupRanks(layout, Axis::kDp, 5), ElementsAre(1, 5));
  EXPECT_THAT(GroupRanks(layout, Axis::kDpCp, 5), ElementsAre(1, 3, 5, 7));
  EXPECT_THAT(GroupRanks(layout, Axis::kPp, 5), ElementsAre(5, 13));
}

TEST(Layout, ExpertsFoldOverTheRanksOfAPipelinePosition) {
  config::ParallelConfig config = Config(2, 1, 2, 4);
  config.set_expert_tensor_parallel_size(1);
  config.set_expert_parallel_size(4);
  const Layout layout = Resolved(config, 16);
  EXPECT_THAT(GroupRanks(layout, Axis::kEtp, 13), ElementsAre(13));
  EXPECT_THAT(GroupRanks(layout, Axis::kEp, 13), ElementsAre(12, 13, 14, 15));
  EXPECT_THAT(GroupRanks(layout, Axis::kEdp, 13), ElementsAre(9, 13));
  EXPECT_THAT(GroupRanks(layout, Axis::kEtpEdp, 13), ElementsAre(9, 13));
}

// An expert's ranks need not be a tensor-parallel group.
TEST(Layout, ExpertTensorsFoldApartFromTensors) {
  config::ParallelConfig config = Config(2, 1, 2, 4);
  config.set_expert_tensor_parallel_size(4);
  config.set_expert_parallel_size(1);
  Layout layout = Resolved(config, 16);
  EXPECT_THAT(GroupRanks(layout, Axis::kEtp, 13), ElementsAre(12, 13, 14, 15));
  EXPECT_THAT(GroupRanks(layout, Axis::kEtpEdp, 13), ElementsAre(8, 9, 10, 11, 12, 13, 14, 15));
  config.set_expert_tensor_parallel_size(2);
  config.set_expert_parallel_size(2);
  layout = Resolved(config, 16);
  EXPECT_THAT(GroupRanks(layout, Axis::kEtp, 13), ElementsAre(12, 13));
  EXPECT_THAT(GroupRanks(layout, Axis::kEp, 13), ElementsAre(13, 15));
  EXPECT_THAT(GroupRanks(layout, Axis::kEdp, 13), ElementsAre(9, 13));
  EXPECT_THAT(GroupRanks(layout, Axis::kEtpEdp, 13), ElementsAre(8, 9, 12, 13));
}

TEST(Layout, TheEmbeddingGroupIsTheFirstAndTheLastStage) {
  config::ParallelConfig config = Config(1, 1, 4);
  Layout layout = Resolved(config, 8);
  EXPECT_THAT(GroupRanks(layout, Axis::kEmbedding, 1), ElementsAre(0, 1, 6, 7));
  EXPECT_THAT(GroupRanks(layout, Axis::kEmbedding, 7), ElementsAre(0, 1, 6, 7));
  EXPECT_THAT(GroupRanks(layout, Axis::kEmbedding, 3), IsEmpty());
  EXPECT_THAT(GroupRanks(Resolved(Config(2, 1, 2), 8), Axis::kEmbedding, 3),
              ElementsAre(1, 3, 5, 7));
  config.set_pipeline_schedule(config::PIPELINE_SCHEDULE_ZB_V);
  layout = Resolved(config, 8);
  EXPECT_THAT(GroupRanks(layout, Axis::kEmbedding, 1), ElementsAre(0, 1));
  EXPECT_THAT(GroupRanks(layout, Axis::kEmbedding, 7), IsEmpty());
}

// Sizes whose product is a small world, and an expert mesh that folds over it.
Layout AnyLayout() {
  const auto size = [] { return *rc::gen::inRange(1, 5); };
  config::ParallelConfig config = Config(size(), size(), size(), size());
  const int mesh =
      config.tensor_parallel_size() * config.context_parallel_size() * config.data_parallel_size();
  const auto divides = [](int of) {
    return *rc::gen::suchThat(rc::gen::inRange(1, of + 1), [of](int d) { return of % d == 0; });
  };
  const int etp = divides(mesh);
  config.set_expert_tensor_parallel_size(etp);
  config.set_expert_parallel_size(divides(mesh / etp));
  return Resolved(config, mesh * config.pipeline_parallel_size());
}

int SizeOf(const Layout& layout, Axis axis) {
  const std::map<Axis, int> sizes = {{Axis::kTp, layout.tp},
                                     {Axis::kCp, layout.cp},
                                     {Axis::kDp, layout.dp},
                                     {Axis::kPp, layout.pp},
                                     {Axis::kEtp, layout.etp},
                                     {Axis::kEp, layout.ep},
                                     {Axis::kEdp, layout.edp},
                                     {Axis::kEtpEdp, layout.etp * layout.edp},
                                     {Axis::kTpCp, layout.tp * layout.cp},
                                     {Axis::kStage, layout.tp * layout.cp * layout.dp},
                                     {Axis::kDpCp, layout.dp * layout.cp}};
  return sizes.at(axis);
}

RC_GTEST_PROP(LayoutProperty, GroupsOfAnAxisPartitionTheWorld, ()) {
  const Layout layout = AnyLayout();
  for (const Axis axis : kAxes) {
    if (axis == Axis::kEmbedding) continue;
    std::set<std::vector<int>> groups;
    for (int rank = 0; rank < layout.world(); ++rank) {
      const std::vector<int> group = GroupRanks(layout, axis, rank);
      RC_ASSERT(static_cast<int>(group.size()) == SizeOf(layout, axis));
      RC_ASSERT(std::is_sorted(group.begin(), group.end()));
      RC_ASSERT(std::count(group.begin(), group.end(), rank) == 1);
      groups.insert(group);
    }
    std::set<int> seen;
    for (const std::vector<int>& group : groups) seen.insert(group.begin(), group.end());
    RC_ASSERT(static_cast<int>(seen.size()) == layout.world());
    RC_ASSERT(static_cast<int>(groups.size()) * SizeOf(layout, axis) == layout.world());
  }
}

// 16 ranks, tensor 2: a copy for each 2 of the 8 data-parallel ranks, the experts over 4
// neighbours.
TEST(Layout, HybridShardingKeepsACopyAmongNeighbours) {
  config::ParallelConfig config = Config(2, 1, 1);
  config.set_zero_group_size(2);
  config.set_expert_parallel_size(2);
  config.set_expert_tensor_parallel_size(1);
  const Layout layout = Resolved(config, 16);
  EXPECT_EQ(layout.zero_group, 2);
  EXPECT_THAT(ShardRanks(layout, Axis::kDpCp, 7), ElementsAre(5, 7));
  EXPECT_THAT(CopyRanks(layout, Axis::kDpCp, 7), ElementsAre(3, 7, 11, 15));
  EXPECT_THAT(ShardRanks(layout, Axis::kStage, 7), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(CopyRanks(layout, Axis::kStage, 7), ElementsAre(3, 7, 11, 15));
  EXPECT_THAT(ShardRanks(layout, Axis::kEdp, 6), ElementsAre(4, 6));
  EXPECT_THAT(CopyRanks(layout, Axis::kEdp, 6), ElementsAre(2, 6, 10, 14));
  config.set_expert_parallel_size(8);  // more than a copy has: no two of them have the same experts
  const Layout wide = Resolved(config, 16);
  EXPECT_THAT(ShardRanks(wide, Axis::kEdp, 6), ElementsAre(6));
  EXPECT_THAT(CopyRanks(wide, Axis::kEdp, 6), ElementsAre(6, 14));
  config.set_zero_group_size(8);  // all there are: one copy
  EXPECT_EQ(Resolved(config, 16).zero_group, 0);
  EXPECT_THAT(CopyRanks(Resolved(config, 16), Axis::kDpCp, 7), ElementsAre(7));
}

TEST(Layout, RefusesCopiesThatDoNotDivide) {
  config::ParallelConfig config = Config(2, 1, 1);
  config.set_zero_group_size(3);
  EXPECT_EQ(Refusal(config, 16), "zero_group_size 3 does not divide context 1 x data 8 = 8");
  config.set_zero_group_size(2);
  config.set_zero_stage(0);
  EXPECT_EQ(Refusal(config, 16), "zero_group_size 2: zero_stage 0 shards nothing");
  config.set_zero_stage(4);
  EXPECT_EQ(Refusal(config, 16), "zero_stage 4, allowed are 0 to 3");
  config = Config(1, 1, 1);
  config.set_zero_group_size(3);
  config.set_expert_parallel_size(4);
  EXPECT_EQ(Refusal(config, 12, LayoutNeeds()),
            "zero_group_size 3: tensor 1 x 3 = 3 ranks neither hold nor divide "
            "expert_parallel_size 4 x expert_tensor_parallel_size 1 = 4");
}

RC_GTEST_PROP(LayoutProperty, CoordinatesNameARankTwice, ()) {
  const Layout l = AnyLayout();
  for (int rank = 0; rank < l.world(); ++rank) {
    const Coordinates at = CoordinatesOf(l, rank);
    RC_ASSERT(rank == at.tp + l.tp * (at.cp + l.cp * (at.dp + l.dp * at.pp)));
    RC_ASSERT(rank == at.etp + l.etp * (at.ep + l.ep * (at.edp + l.edp * at.pp)));
    RC_ASSERT(GroupRanks(l, Axis::kTp, rank)[at.tp] == rank);
    RC_ASSERT(GroupRanks(l, Axis::kCp, rank)[at.cp] == rank);
    RC_ASSERT(GroupRanks(l, Axis::kDp, rank)[at.dp] == rank);
    RC_ASSERT(GroupRanks(l, Axis::kPp, rank)[at.pp] == rank);
    RC_ASSERT(GroupRanks(l, Axis::kEp, rank)[at.ep] == rank);
  }
}

TEST(Layout, AxesHaveNamesOfTheirOwn) {
  std::set<std::string_view> names;
  for (const Axis axis : kAxes) names.insert(Name(axis));
  EXPECT_EQ(names.size(), std::size(kAxes));
}

}  // namespace
}  // namespace cadre
