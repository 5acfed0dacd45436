#include "core/near_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cadre {
namespace {

TEST(NearNames, ThoseWithinAFewTypingErrorsComeNearestFirst) {
  const std::vector<std::string> verbs = {"train", "trace", "launch", "plan", "version"};
  EXPECT_THAT(NearNames("train", verbs), testing::ElementsAre("train"));
  EXPECT_THAT(NearNames("trian", verbs), testing::ElementsAre("train"));
  EXPECT_THAT(NearNames("trane", verbs), testing::ElementsAre("trace"));
  EXPECT_THAT(NearNames("lanch", verbs), testing::ElementsAre("launch"));
  EXPECT_THAT(NearNames("vers", verbs), testing::ElementsAre("version"));
  EXPECT_THAT(NearNames("foo", verbs), testing::IsEmpty());
  EXPECT_THAT(NearNames("", verbs), testing::IsEmpty());
  EXPECT_THAT(NearNames("aab", {"aaa", "aac", "aad", "aae"}),
              testing::ElementsAre("aaa", "aac", "aad"));
}

TEST(DidYouMean, SaysNothingWhereNothingIsNear) {
  EXPECT_EQ(DidYouMean("trian", {"train"}), "did you mean train?");
  EXPECT_EQ(DidYouMean("xyzzy", {"train"}), "");
}

}  // namespace
}  // namespace cadre
