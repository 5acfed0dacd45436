#include "cluster/join.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

namespace cadre {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(JoinJob, RankZeroOpensTheRendezvousWhereNobodyElseDoes) {
  // A port that was free a moment ago.
  const int port = (*RendezvousServer::Start({.ranks = 1}))->port();
  std::vector<std::future<std::vector<std::string>>> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.push_back(std::async(std::launch::async, [rank, port] {
      RankEnvironment environment{
          .rank = rank, .world_size = 3, .master_address = "127.0.0.1", .master_port = port};
      auto membership = JoinJob(environment, std::chrono::seconds(60));
      if (!membership.ok()) return std::vector{Message(membership.status())};
      membership->recorder->SetStep(1);
      auto values = membership->bootstrap->AllGather("world", std::to_string(rank));
      // Rank 0 has the server: all must have been answered before it goes.
      (void)membership->bootstrap->AllGather("bye", "");
      return values.ok() ? *values : std::vector{Message(values.status())};
    }));
  }
  for (auto& rank : ranks) EXPECT_THAT(rank.get(), ElementsAre("0", "1", "2"));
}

TEST(JoinJob, StrangersAreKeptOut) {
  EXPECT_THAT(
      Message(JoinJob({.world_size = 2, .master_address = "192.0.2.1"}, std::chrono::seconds(1))
                  .status()),
      HasSubstr("MASTER_ADDR 192.0.2.1: set CADRE_JOB_TOKEN"));
}

}  // namespace
}  // namespace cadre
