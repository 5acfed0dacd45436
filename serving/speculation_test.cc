#include "serving/speculation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serving/step_plan.h"

namespace cadre {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int32_t> Guess(const std::vector<int32_t>& tokens, const NgramOptions& options,
                           int64_t most) {
  const auto guess = NgramGuess(tokens, options, most);
  return {guess.begin(), guess.end()};
}

TEST(NgramTest, GoesOnAsTheMostRecentOccurrenceOfTheLongestEndDid) {
  const NgramOptions options{.longest = 3, .shortest = 1};
  EXPECT_THAT(Guess({1, 2, 3, 7, 8, 9, 1, 2, 3}, options, 2), ElementsAre(7, 8));
  // The longest end wins over a nearer short one.
  EXPECT_THAT(Guess({1, 2, 3, 7, 3, 9, 1, 2, 3}, options, 1), ElementsAre(7));
  // Of two alike the nearer one.
  EXPECT_THAT(Guess({5, 6, 5, 7, 5}, options, 1), ElementsAre(7));
  // What is guessed may be the end itself.
  EXPECT_THAT(Guess({4, 4, 4, 4}, options, 5), ElementsAre(4));
  EXPECT_THAT(Guess({1, 2, 1}, options, 9), ElementsAre(2, 1));
}

TEST(NgramTest, GuessesNothingWithoutAnOccurrence) {
  EXPECT_THAT(Guess({1, 2, 3, 4}, {.longest = 3, .shortest = 1}, 4), IsEmpty());
  EXPECT_THAT(Guess({1, 9, 1}, {.longest = 3, .shortest = 2}, 4), IsEmpty());
  EXPECT_THAT(Guess({7}, {.longest = 3, .shortest = 1}, 4), IsEmpty());
  EXPECT_THAT(Guess({}, {.longest = 3, .shortest = 1}, 4), IsEmpty());
}

TEST(ScheduledChunkTest, GuessesFollowTheKnownTokens) {
  Sequence sequence;
  sequence.tokens = {10, 11, 12};
  sequence.draft = {20, 21};
  ScheduledChunk chunk{&sequence, 2, 3};
  EXPECT_THAT(chunk.Tokens(), ElementsAre(12, 20, 21));
  EXPECT_EQ(chunk.sampled_rows(), 3);
  ScheduledChunk prompt{&sequence, 0, 2};
  EXPECT_THAT(prompt.Tokens(), ElementsAre(10, 11));
  EXPECT_FALSE(prompt.samples());
  EXPECT_EQ(prompt.sampled_rows(), 0);
}

}  // namespace
}  // namespace cadre
