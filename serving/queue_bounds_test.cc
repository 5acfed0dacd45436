#include "serving/queue_bounds.h"

#include <gtest/gtest.h>

#include "serving/retry_after.h"

namespace cadre {
namespace {

std::vector<GenerationRequest> Requests(uint64_t first, int count, const std::string& tenant = "") {
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < count; ++i) {
    requests.push_back({.id = first + static_cast<uint64_t>(i), .tenant = tenant});
  }
  return requests;
}

TEST(QueueBounds, AllOrNoneWithinTheBound) {
  QueueBounds bounds({.sequences = 3});
  EXPECT_TRUE(bounds.Enter(Requests(1, 2), 0).ok());
  const absl::Status full = bounds.Enter(Requests(3, 2), 0);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfterOf(full), 1);  // nothing has left yet
  EXPECT_FALSE(bounds.contains(3));
  EXPECT_TRUE(bounds.Enter(Requests(3, 1), 0).ok());
  bounds.Leave(1, 1);
  bounds.Leave(1, 1);
  EXPECT_TRUE(bounds.Enter(Requests(4, 1), 1).ok());
  EXPECT_FALSE(bounds.Enter(Requests(5, 1), 1).ok());
}

TEST(QueueBounds, WhatNeverFitsIsNotToBeTriedAgain) {
  QueueBounds bounds({.sequences = 5, .per_tenant = 2});
  const absl::Status all = bounds.Enter(Requests(1, 6), 0);
  EXPECT_EQ(all.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(all), "n: 6 sequences in one request, at most 5 may run or wait at once");
  ASSERT_TRUE(bounds.Enter(Requests(10, 2, "a"), 0).ok());
  ASSERT_TRUE(bounds.Enter(Requests(20, 2, "b"), 0).ok());
  const absl::Status key = bounds.Enter(Requests(1, 3, "c"), 0);  // also where it is full now
  EXPECT_EQ(key.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(key),
            "n: 3 sequences in one request, at most 2 of a key may run or wait at once");
  EXPECT_FALSE(bounds.contains(1));
  EXPECT_EQ(bounds.Enter(Requests(1, 2, "c"), 0).code(), absl::StatusCode::kResourceExhausted);
}

TEST(QueueBounds, IdsInUseAreRefused) {
  QueueBounds bounds({.sequences = 9});
  ASSERT_TRUE(bounds.Enter(Requests(1, 2), 0).ok());
  EXPECT_EQ(bounds.Enter(Requests(2, 1), 0).code(), absl::StatusCode::kInvalidArgument);
  auto twice = Requests(3, 1);
  twice.push_back(twice.front());
  EXPECT_EQ(bounds.Enter(twice, 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(bounds.Enter(Requests(3, 1), 0).ok());
}

TEST(QueueBounds, OneKeyCannotFillTheQueue) {
  QueueBounds bounds({.sequences = 10, .per_tenant = 2});
  EXPECT_TRUE(bounds.Enter(Requests(1, 2, "a"), 0).ok());
  const absl::Status full = bounds.Enter(Requests(3, 1, "a"), 0);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfterOf(full).has_value());
  EXPECT_TRUE(bounds.Enter(Requests(3, 2, "b"), 0).ok());
  bounds.Leave(2, 0);
  EXPECT_TRUE(bounds.Enter(Requests(5, 1, "a"), 0).ok());
}

TEST(QueueBounds, RetryAfterIsTheTimeTheQueueTakesToDrain) {
  QueueBounds bounds({.sequences = 100});
  ASSERT_TRUE(bounds.Enter(Requests(1, 60), 0).ok());
  // One leaves every half second: the 20 that are left take ten seconds.
  for (int i = 0; i < 40; ++i) bounds.Leave(static_cast<uint64_t>(i + 1), 10 + 0.5 * i);
  EXPECT_NEAR(bounds.RetryAfter(30), 10, 1);
  EXPECT_NEAR(bounds.RetryAfter(62), 30, 1);  // none left for half a minute: it drains slower
  EXPECT_EQ(bounds.RetryAfter(1e6), 600);
  EXPECT_EQ(RetryAfterOf(ResourceExhausted("full")), std::nullopt);
}

}  // namespace
}  // namespace cadre
