#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "parallel/ucx_transport.h"

namespace cadre {

using Bytes = std::vector<std::byte>;
using Addresses = std::map<int, std::string>;

// A test that waits longer hangs.
inline constexpr std::chrono::seconds kHangs{60};
// One rank's UcxTransport for tests, driven by one thread that sleeps between the rings.
class UcxTestRank {
 public:
  explicit UcxTestRank(int rank, std::chrono::milliseconds leave_within = kHangs) : rank_(rank) {
    auto transport = UcxTransport::Create(
        {.rank = rank, .ring = [this] { Ring(); }, .leave_within = leave_within});
    CADRE_CHECK(transport.ok(), "{}", Message(transport.status()));
    transport_ = *std::move(transport);
  }

  int rank() const { return rank_; }
  UcxTransport& transport() { return *transport_; }
  // Before the bytes of what is under way go.
  void Leave() { transport_.reset(); }

  Transfer* Send(int peer, uint64_t tag, const Bytes& bytes) {
    transport_->Send(peer, tag, bytes, &transfers_.emplace_back());
    return &transfers_.back();
  }
  Transfer* Receive(int peer, uint64_t tag, Bytes& bytes) {
    transport_->Receive(peer, tag, bytes, &transfers_.emplace_back());
    return &transfers_.back();
  }

  // Until `done` or a loss, which is returned.
  std::optional<PeerLoss> Wait(const std::function<bool()>& done) {
    while (true) {
      std::optional<PeerLoss> loss = transport_->Progress();
      if (loss || done()) return loss;
      if (transport_->Arm()) Sleep();
    }
  }
  std::optional<PeerLoss> WaitForAll() {
    return Wait([this] {
      return std::all_of(transfers_.begin(), transfers_.end(), [](auto& t) { return t.done; });
    });
  }
  PeerLoss WaitForLoss() {
    std::optional<PeerLoss> loss = Wait([] { return false; });
    EXPECT_EQ(transport_->Progress()->reason, loss->reason) << "a loss stays";
    return *loss;
  }

  int rings() {
    std::lock_guard lock(mutex_);
    return rings_;
  }
  int arms() const { return arms_; }

 private:
  void Ring() {
    std::lock_guard lock(mutex_);
    ++rings_;
    bell_.notify_all();
  }
  void Sleep() {
    std::unique_lock lock(mutex_);
    ++arms_;
    CADRE_CHECK(bell_.wait_for(lock, kHangs, [this] { return rings_ > heard_; }), "rank {}", rank_);
    heard_ = rings_;
  }

  const int rank_;
  std::mutex mutex_;
  std::condition_variable bell_;
  int rings_ = 0;
  int heard_ = 0;
  int arms_ = 0;
  std::deque<Transfer> transfers_;
  std::unique_ptr<UcxTransport> transport_;
};

inline void ExpectNoLoss(const std::optional<PeerLoss>& loss) {
  EXPECT_FALSE(loss) << "rank " << loss->peer << ": " << loss->reason;
}

}  // namespace cadre
