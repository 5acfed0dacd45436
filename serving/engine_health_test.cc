// What an engine says of itself: its health, and the work that it counts.
#include <gtest/gtest.h>

#include "model/model_cost.h"
#include "serving/engine_test_fixture.h"

namespace cadre {
namespace {

TEST_F(EngineTest, ALoopThatIsBusyAndEndsNoStepIsNotReady) {
  Start({.stuck_seconds = 0});
  EXPECT_TRUE(engine_->Health().ready);  // it has nothing to do
  auto sink = std::make_shared<Sink>();
  sink->Hold(true);
  ASSERT_TRUE(engine_->Submit({Request(1, 4, 0, {.max_tokens = 3})}, sink).ok());
  sink->WaitForEvents(1, 1);
  const EngineHealth stuck = engine_->Health();
  EXPECT_FALSE(stuck.ready);
  EXPECT_EQ(stuck.reason, "no step ended for 0 s");
  EXPECT_GT(stuck.seconds_since_step, 0);
  sink->Hold(false);
  sink->WaitForEnd(1);
  engine_->Stop();
  EXPECT_EQ(engine_->Health().reason, "the engine is stopping");
}

TEST_F(EngineTest, CountsTheModelsWork) {
  Start({.max_num_batched_tokens = 64});
  Run(Request(1, 5, 0, {.max_tokens = 1}));
  const EngineStats stats = engine_->Stats();
  // Of a whole prompt's forward: a third of training's operations, with the head on one row of five
  // instead of all of them.
  const DecoderSpec& spec = model_->spec();
  const auto head = static_cast<double>(spec.vocab * spec.hidden);
  EXPECT_NEAR(stats.model_flops, 5 * ModelFlopsPerToken(spec, 5) / 3 - 4 * 2 * head, 1e-3);
  EXPECT_GT(stats.model_bytes, 4 * head);
  EXPECT_EQ(stats.peak_flops_per_second, 0);  // the step's size was given

  Start({.max_num_batched_tokens = 0});
  EXPECT_GT(engine_->Stats().peak_flops_per_second, 0);
  EXPECT_GT(engine_->Stats().peak_bytes_per_second, 0);
}

}  // namespace
}  // namespace cadre
