#include "serving/step_message.h"

#include <gtest/gtest.h>

namespace cadre {
namespace {

// Two sequences, of two tokens and of one, in blocks of 16.
StepMessage Message() {
  return {.number = 3,
          .weight_version = 7,
          .plans = {{.copies = {{1, 4}},
                     .ids = {1, 2, 3},
                     .positions = {16, 17, 0},
                     .offsets = {0, 2, 3},
                     .tables = {{.stride = 2,
                                 .blocks = {4, 2, 0, 0},
                                 .context_lengths = {18, 1},
                                 .slots = {32, 33, 0}}},
                     .sample_rows = {1, 2},
                     .scored = {{0, 2}},
                     .pooled = {{1, 2}}},
                    {.offsets = {0}, .tables = {{.stride = 1}}}}};
}

constexpr StepBounds kBounds = {
    .vocabulary = 10, .positions = 64, .blocks = 5, .block_size = 16, .layers = 2};

TEST(StepMessage, ComesBack) {
  const StepMessage message = Message();
  const auto decoded = DecodeStep(EncodeStep(message));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->number, 3);
  EXPECT_EQ(decoded->weight_version, 7);
  ASSERT_EQ(decoded->plans[0].copies.size(), 1u);
  EXPECT_EQ(decoded->plans[0].copies[0].to, 4);
  EXPECT_EQ(decoded->plans[0].ids, message.plans[0].ids);
  EXPECT_EQ(decoded->plans[0].positions, message.plans[0].positions);
  EXPECT_EQ(decoded->plans[0].offsets, message.plans[0].offsets);
  EXPECT_EQ(decoded->plans[0].sample_rows, message.plans[0].sample_rows);
  ASSERT_EQ(decoded->plans[0].scored.size(), 1u);
  EXPECT_EQ(decoded->plans[0].scored[0].count, 2);
  ASSERT_EQ(decoded->plans[0].pooled.size(), 1u);
  EXPECT_EQ(decoded->plans[0].pooled[0].begin, 1);
  ASSERT_EQ(decoded->plans[0].tables.size(), 1u);
  EXPECT_EQ(decoded->plans[0].tables[0].stride, 2);
  EXPECT_EQ(decoded->plans[0].tables[0].blocks, message.plans[0].tables[0].blocks);
  EXPECT_EQ(decoded->plans[0].tables[0].slots, message.plans[0].tables[0].slots);
  EXPECT_TRUE(CheckStep(decoded->plans[0], kBounds).ok());
  ASSERT_EQ(decoded->plans.size(), 2u);
  EXPECT_EQ(decoded->plans[1].tokens(), 0);
  EXPECT_TRUE(CheckStep(decoded->plans[1], kBounds).ok()) << "nothing to do";
  const auto stop = DecodeStep(EncodeStep({.kind = StepKind::kStop}));
  ASSERT_TRUE(stop.ok());
  EXPECT_EQ(stop->kind, StepKind::kStop);
  const auto sleep = DecodeStep(EncodeStep({.kind = StepKind::kSleep, .sleep_level = 2}));
  ASSERT_TRUE(sleep.ok());
  EXPECT_EQ(sleep->sleep_level, 2);
  EXPECT_FALSE(DecodeStep(EncodeStep({.kind = StepKind::kSleep, .sleep_level = 3})).ok());
}

TEST(StepMessage, NoPartOfItIsAMessage) {
  std::vector<std::byte> bytes = EncodeStep(Message());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(DecodeStep(std::span(bytes).first(size)).ok()) << size;
  }
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(DecodeStep(bytes).ok());
}

// Whatever a byte becomes, nothing larger than the message is allocated and what passes both checks
// stays within the bounds.
TEST(StepMessage, NoByteBreaksIt) {
  const std::vector<std::byte> bytes = EncodeStep(Message());
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (const int flip : {1, 0x80, 0xff}) {
      std::vector<std::byte> broken = bytes;
      broken[at] ^= static_cast<std::byte>(flip);
      const auto decoded = DecodeStep(broken);
      if (!decoded.ok() || decoded->plans.empty()) continue;
      if (!CheckStep(decoded->plans[0], kBounds).ok()) continue;
      for (const int64_t slot : decoded->plans[0].tables[0].slots) EXPECT_LT(slot, 5 * 16);
      for (const int32_t id : decoded->plans[0].ids) EXPECT_LT(id, 10);
    }
  }
}

TEST(StepMessage, APlanThatCannotBeIsRefused) {
  const auto refused = [](auto change) {
    StepPlan plan = Message().plans[0];
    change(plan);
    return CheckStep(plan, kBounds).code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_FALSE(refused([](StepPlan&) {}));
  EXPECT_TRUE(refused([](StepPlan& p) { p.copies[0].to = 5; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.copies[0].from = -1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.copies[0].to = 1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.ids[1] = 10; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.ids.pop_back(); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.positions[0] = 64; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.positions[0] = -1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.offsets = {0, 4, 3}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.offsets = {1, 2, 3}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.offsets.clear(); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p = {.offsets = {0}, .sample_rows = {0}}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables.clear(); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables.resize(3, p.tables[0]); }));
  EXPECT_FALSE(refused([](StepPlan& p) { p.tables.resize(2, p.tables[0]); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables[0].blocks[3] = 5; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables[0].blocks.pop_back(); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables[0].stride = int64_t{1} << 62; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables[0].stride = 0; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables[0].slots[0] = 80; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables[0].slots.push_back(1); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables[0].context_lengths[0] = 33; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tables[0].context_lengths[0] = 1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.sample_rows[1] = 3; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.scored[0] = {2, 2}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.scored[0] = {0, 0}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.pooled[0] = {1, 3}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.scored[0] = {1, INT64_MAX}; }));
}

}  // namespace
}  // namespace cadre
