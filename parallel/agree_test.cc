#include "parallel/agree.h"

#include <gtest/gtest.h>

#include <numeric>

#include "parallel/test_ranks.h"

namespace cadre {
namespace {

std::unique_ptr<Communicator> Everyone(World& world) {
  std::vector<int> ranks(static_cast<size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return world.NewGroup("all", ranks);
}

TEST(Agree, EveryRankGetsTheFirstFailure) {
  for (int size : {2, 5}) {
    RunRanks(size, [](World& world) {
      auto group = Everyone(world);
      EXPECT_TRUE(Agree(*group, absl::OkStatus(), {"all is well"}).ok());
      for (int failing = 0; failing < world.size(); ++failing) {
        absl::Status mine;
        if (world.rank() >= failing) {
          mine = ResourceExhausted("disk of {} is full", world.rank());
        }
        absl::Status status = Agree(*group, mine, {"write"});
        EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
        EXPECT_EQ(Message(status), fmt::format("rank {0}: disk of {0} is full", failing));
      }
      absl::Status common = Agree(*group, DataLoss("the same everywhere"), {"read"});
      EXPECT_EQ(Message(common), "the same everywhere");
      EXPECT_TRUE(Agree(*group, absl::OkStatus(), {"again"}).ok());
    });
  }
}

TEST(Agree, TextsOfAnyLengthComeByRank) {
  RunRanks(4, [](World& world) {
    auto group = Everyone(world);
    auto text = [](int rank) {
      return rank == 2 ? std::string() : std::string(static_cast<size_t>(rank) * 70'001 + 1, 'x');
    };
    auto texts = GatherText(*group, text(world.rank()), {"texts"});
    ASSERT_TRUE(texts.ok()) << Message(texts.status());
    ASSERT_EQ(texts->size(), 4u);
    for (int rank = 0; rank < 4; ++rank) EXPECT_EQ((*texts)[static_cast<size_t>(rank)], text(rank));
  });
}

}  // namespace
}  // namespace cadre
