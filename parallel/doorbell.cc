#include "parallel/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

namespace cadre {
namespace {

// The words are shared between processes, so the futexes are not private ones.
uint32_t* Word(std::atomic<uint32_t>& word) { return reinterpret_cast<uint32_t*>(&word); }

void FutexWake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, Word(word), FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

void FutexWait(std::atomic<uint32_t>& word, uint32_t expected, std::chrono::nanoseconds at_most) {
  const auto count = std::max<int64_t>(0, at_most.count());
  const timespec wait = {static_cast<time_t>(count / 1'000'000'000),
                         static_cast<long>(count % 1'000'000'000)};
  syscall(SYS_futex, Word(word), FUTEX_WAIT, expected, &wait, nullptr, 0);
}

// Counters wrap.
bool Reached(uint32_t count, uint32_t mark) { return static_cast<int32_t>(count - mark) >= 0; }

}  // namespace

void Doorbell::Ring(uint32_t times) {
  const uint32_t rings = state_->rings.fetch_add(times) + times;
  State::SeatState& seat = state_->seats[state_->driver.load() & 1];
  if (seat.asleep.load() == 0 || !Reached(rings, seat.wake_at.load())) return;
  if (seat.asleep.exchange(0) != 0) FutexWake(seat.asleep);
}

void Doorbell::WakeAt(Seat seat, uint32_t rings) {
  state_->seats[static_cast<int>(seat)].wake_at.store(rings);
}

bool Doorbell::Passed(Seat seat) const {
  return Reached(state_->rings.load(), state_->seats[static_cast<int>(seat)].wake_at.load());
}

void Doorbell::Sleep(Seat seat, std::chrono::nanoseconds at_most) {
  std::atomic<uint32_t>& asleep = state_->seats[static_cast<int>(seat)].asleep;
  asleep.store(1);
  if (!Passed(seat)) FutexWait(asleep, 1, at_most);
  asleep.store(0);
}

void Doorbell::Wake(Seat seat) {
  std::atomic<uint32_t>& asleep = state_->seats[static_cast<int>(seat)].asleep;
  if (asleep.exchange(0) != 0) FutexWake(asleep);
}

}  // namespace cadre
