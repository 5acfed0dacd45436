#include "cluster/launch_folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace cadre {
namespace {

namespace fs = std::filesystem;

TEST(LaunchFolder, GoesWithItsLauncherAndTakesStaleOnesAlong) {
  const fs::path parent =
      fs::path(testing::TempDir()) / fmt::format("launch_folder_test.{}", getpid());
  fs::create_directories(parent / "cadre-launch-stale");
  fs::create_directories(parent / "other");
  std::ofstream(parent / "cadre-launch-stale" / "rank-0000") << "x";
  {
    const auto first = LaunchFolder::Create({"", "/none/such", parent});
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_EQ(fs::status((*first)->path()).permissions(), fs::perms::owner_all);
    EXPECT_FALSE(fs::exists(parent / "cadre-launch-stale"));
    EXPECT_TRUE(fs::exists(parent / "other"));
    const auto second = LaunchFolder::Create({parent});
    ASSERT_TRUE(second.ok());
    EXPECT_TRUE(fs::exists((*first)->path()));
    EXPECT_NE((*first)->path(), (*second)->path());
    std::ofstream((*first)->path() + "/rank-0000") << "x";
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(parent), {}), 1);
  fs::remove_all(parent);
}

TEST(LaunchFolder, NowhereToMakeIt) { EXPECT_FALSE(LaunchFolder::Create({"/none/such"}).ok()); }

}  // namespace
}  // namespace cadre
