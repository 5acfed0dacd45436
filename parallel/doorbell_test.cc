#include "parallel/doorbell.h"

#include <future>
#include <thread>

#include <gtest/gtest.h>

namespace cadre {
namespace {

using std::chrono::minutes;

constexpr Seat kThread = Seat::kProgressThread, kCaller = Seat::kCaller;

// Sleeps for minutes on a seat, on a thread of its own, which it shows to be asleep before it
// returns.
std::future<void> FallAsleep(Doorbell::State& state, Seat seat) {
  auto sleeper =
      std::async(std::launch::async, [&state, seat] { Doorbell(&state).Sleep(seat, minutes(2)); });
  while (state.seats[static_cast<int>(seat)].asleep.load() == 0) std::this_thread::yield();
  return sleeper;
}

// A bound against hanging; the collectives would hide a ring that wakes nobody, since they look
// around ten times a second.
void ExpectWakes(std::future<void>& sleeper) {
  ASSERT_EQ(sleeper.wait_for(minutes(1)), std::future_status::ready);
}

TEST(Doorbell, WakesAtTheMarkAndNotBefore) {
  Doorbell::State state = {};
  Doorbell bell(&state);
  bell.WakeAt(kThread, bell.rings() + 3);
  auto sleeper = FallAsleep(state, kThread);
  bell.Ring();
  bell.Ring();
  EXPECT_EQ(state.seats[0].asleep.load(), 1u);
  EXPECT_FALSE(bell.Passed(kThread));
  bell.Ring();
  ExpectWakes(sleeper);
  EXPECT_TRUE(bell.Passed(kThread));
}

TEST(Doorbell, RingsLookAtTheDriverAlone) {
  Doorbell::State state = {};
  Doorbell bell(&state);
  bell.WakeAt(kThread, bell.rings() + 1);
  auto thread = FallAsleep(state, kThread);
  bell.set_driver(kCaller);
  bell.WakeAt(kCaller, bell.rings() + 1);
  auto caller = FallAsleep(state, kCaller);
  bell.Ring();
  ExpectWakes(caller);
  EXPECT_EQ(state.seats[0].asleep.load(), 1u);
  bell.set_driver(kThread);
  bell.Ring();
  ExpectWakes(thread);
}

TEST(Doorbell, WhatHasPassedPutsNobodyToSleep) {
  Doorbell::State state = {};
  Doorbell bell(&state);
  bell.Ring(2);
  bell.WakeAt(kThread, 2);
  auto sleeper = std::async(std::launch::async, [&] { bell.Sleep(kThread, minutes(2)); });
  ExpectWakes(sleeper);
}

TEST(Doorbell, CountersWrap) {
  Doorbell::State state = {};
  state.rings = UINT32_MAX;
  Doorbell bell(&state);
  bell.WakeAt(kThread, bell.rings() + 2);
  EXPECT_FALSE(bell.Passed(kThread));
  auto sleeper = FallAsleep(state, kThread);
  bell.Ring(2);
  ExpectWakes(sleeper);
  EXPECT_EQ(bell.rings(), 1u);
}

TEST(Doorbell, WakeNeedsNoRing) {
  Doorbell::State state = {};
  Doorbell bell(&state);
  bell.WakeAt(kThread, bell.rings() + 1);
  auto sleeper = FallAsleep(state, kThread);
  bell.Wake(kThread);
  ExpectWakes(sleeper);
}

}  // namespace
}  // namespace cadre
