// Doorbell: where a rank sleeps until messages reach it. Its state lies in memory that peers map;
// ringing it costs one atomic addition unless a sleeper has to be woken.
//
// Two threads of a rank may sleep on it, each on its own seat, but one of them drives at a time:
// its caller in Work::Wait, or else the progress thread. Rings look at the driver's seat alone, and
// wake it only when as many rings came as it waits for, so that ranks that outnumber the cores are
// not woken for the first of several messages.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace cadre {

enum class Seat : uint32_t { kProgressThread, kCaller };

class Doorbell {
 public:
  // All zeros are a valid state, also for memory that is mapped by several processes.
  struct State {
    struct SeatState {
      std::atomic<uint32_t> asleep;
      std::atomic<uint32_t> wake_at;
    };
    alignas(64) std::atomic<uint32_t> rings;
    std::atomic<uint32_t> driver;
    SeatState seats[2];
  };
  static_assert(std::atomic<uint32_t>::is_always_lock_free);

  explicit Doorbell(State* state) : state_(state) {}

  // More rings than any sleeper waits for, as long as it waits for something.
  static constexpr uint32_t kWakesAnybody = 1u << 20;

  // Any thread of any process. What it tells of must have been written before.
  void Ring(uint32_t times = 1);

  uint32_t rings() const { return state_->rings.load(); }
  void set_driver(Seat seat) { state_->driver.store(static_cast<uint32_t>(seat)); }

  // How many rings wake the seat next. By the holder of the engine's lock; after it, rings() must
  // be read again: what has passed wakes nobody.
  void WakeAt(Seat seat, uint32_t rings);
  bool Passed(Seat seat) const;

  // Sleeps until the rings pass the seat's mark, Wake, or the time is over; at once where they have
  // passed. May return early.
  void Sleep(Seat seat, std::chrono::nanoseconds at_most);
  void Wake(Seat seat);

 private:
  State* state_;
};

}  // namespace cadre
