// NCCL in host memory, for tests of all that stands around it: ranks are threads that share one
// FakeNccl, and what they launch is computed at once when the last of them has launched it. Sums
// are made in rank order. It refuses what NCCL would hang or fail at.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/host_allocator.h"
#include "parallel/nccl_device.h"
#include "parallel/reduce.h"

namespace cadre {

class FakeNccl {
 public:
  // Nothing that is launched from now on ends.
  std::atomic<bool> hangs = false;
  // In the world: the rank whose launches fail, and the one whose links report an error.
  std::atomic<int> fails_to_launch = -1, reports_error = -1, makes_no_id = -1;
  std::atomic<int> links = 0;  // that are there
  std::atomic<int> aborted = 0;

 private:
  friend class FakeLink;
  friend class FakeNcclDevice;
  friend struct FakeEvent;

  struct Launched {
    bool done = false, aborted = false;
    std::vector<std::function<void()>> notices;
  };
  struct Clique {
    explicit Clique(int size) : calls(static_cast<size_t>(size)), ends(calls.size()) {}
    std::vector<std::deque<NcclCalls>> calls;  // by rank, not yet run
    std::vector<std::deque<std::shared_ptr<Launched>>> ends;
    int ending = 0;
    bool aborted = false;
  };

  void RunAll(Clique& clique, std::vector<std::function<void()>>* notices);
  static void RunCollective(const std::vector<NcclCalls>& ranks, size_t i);
  static void RunMessages(const std::vector<NcclCalls>& ranks);

  std::mutex mutex_;
  std::condition_variable ended_;
  std::map<NcclId, std::shared_ptr<Clique>> cliques_;
  uint8_t ids_ = 0;
};

struct FakeEvent : DeviceEvent {
  std::shared_ptr<FakeNccl::Launched> launched;  // null: reached
};

class FakeLink : public NcclLink {
 public:
  FakeLink(FakeNccl& nccl, std::shared_ptr<FakeNccl::Clique> clique, int rank, int world_rank)
      : nccl_(nccl), clique_(std::move(clique)), rank_(rank), world_rank_(world_rank) {
    ++nccl_.links;
  }
  ~FakeLink() override { --nccl_.links; }

  absl::StatusOr<bool> Settled() override {
    if (nccl_.reports_error == world_rank_) return Internal("NCCL: remote process exited");
    if (ending_) {
      std::lock_guard lock(nccl_.mutex_);
      if (clique_->aborted) return Internal("NCCL: remote error");
      return clique_->ending == static_cast<int>(clique_->calls.size());
    }
    return settles_in_ == 0 || --settles_in_ == 0;
  }

  absl::Status Launch(const NcclCalls& calls, const DeviceEvent&) override {
    CADRE_CHECK(settles_in_ == 0, "launched before the last call had settled");
    if (nccl_.fails_to_launch == world_rank_) return Internal("ncclGroupEnd: invalid usage");
    settles_in_ = 2;
    last_ = std::make_shared<FakeNccl::Launched>();
    std::vector<std::function<void()>> notices;
    {
      std::lock_guard lock(nccl_.mutex_);
      clique_->calls[static_cast<size_t>(rank_)].push_back(calls);
      clique_->ends[static_cast<size_t>(rank_)].push_back(last_);
      if (!nccl_.hangs) nccl_.RunAll(*clique_, &notices);
    }
    for (const auto& notice : notices) notice();
    return absl::OkStatus();
  }

  absl::Status Mark(DeviceEvent& event) override {
    CADRE_CHECK(settles_in_ == 0, "marked before the launch had settled");
    static_cast<FakeEvent&>(event).launched = last_;
    return absl::OkStatus();
  }

  absl::Status NotifyAt(const DeviceEvent& event, std::function<void()> notify) override {
    {
      std::lock_guard lock(nccl_.mutex_);
      FakeNccl::Launched& launched = *static_cast<const FakeEvent&>(event).launched;
      if (!launched.done) {
        launched.notices.push_back(std::move(notify));
        return absl::OkStatus();
      }
    }
    notify();
    return absl::OkStatus();
  }

  // All ranks of the link have to.
  absl::StatusOr<bool> End() override {
    CADRE_CHECK(settles_in_ == 0, "ended before the last call had settled");
    std::lock_guard lock(nccl_.mutex_);
    ending_ = true;
    ++clique_->ending;
    return false;
  }

  void Abort() override {
    std::lock_guard lock(nccl_.mutex_);
    clique_->aborted = true;
    for (const auto& ends : clique_->ends) {
      for (const auto& launched : ends) launched->aborted = true;
    }
    ++nccl_.aborted;
    nccl_.ended_.notify_all();
  }

 private:
  FakeNccl& nccl_;
  const std::shared_ptr<FakeNccl::Clique> clique_;
  const int rank_, world_rank_;
  int settles_in_ = 2;
  bool ending_ = false;
  std::shared_ptr<FakeNccl::Launched> last_;
};

class FakeNcclDevice : public NcclDevice {
 public:
  FakeNcclDevice(FakeNccl& nccl, int world_rank) : nccl_(nccl), world_rank_(world_rank) {}

  Device device() const override { return {}; }
  absl::StatusOr<NcclId> MakeId() override {
    if (nccl_.makes_no_id == world_rank_) return Internal("ncclGetUniqueId: system error");
    std::lock_guard lock(nccl_.mutex_);
    NcclId id{};
    id[0] = std::byte{++nccl_.ids_};
    return id;
  }
  absl::StatusOr<std::unique_ptr<NcclLink>> Open(const NcclId& id, NcclPlace place) override {
    std::lock_guard lock(nccl_.mutex_);
    auto& clique = nccl_.cliques_[id];
    if (clique == nullptr) clique = std::make_shared<FakeNccl::Clique>(place.size);
    CADRE_CHECK(static_cast<int>(clique->calls.size()) == place.size);
    return std::make_unique<FakeLink>(nccl_, clique, place.rank, world_rank_);
  }
  absl::StatusOr<std::unique_ptr<DeviceEvent>> MarkCompute() override {
    return std::make_unique<FakeEvent>();
  }
  // The compute stream is whoever calls.
  absl::Status ComputeWaitsFor(const DeviceEvent& event) override {
    ++compute_waits;
    const auto launched = static_cast<const FakeEvent&>(event).launched;
    std::unique_lock lock(nccl_.mutex_);
    nccl_.ended_.wait(lock, [&] { return launched->done || launched->aborted || nccl_.hangs; });
    return absl::OkStatus();
  }
  absl::StatusOr<bool> Reached(const DeviceEvent& event) override {
    std::lock_guard lock(nccl_.mutex_);
    const auto& launched = static_cast<const FakeEvent&>(event).launched;
    return launched == nullptr || launched->done;
  }
  Allocator& memory() override { return memory_; }
  absl::Status Copy(const Tensor& from, const Tensor& to) override {
    if (from.bytes() > 0) std::memcpy(to.raw(), from.raw(), from.bytes());
    return absl::OkStatus();
  }

  std::atomic<int> compute_waits = 0;

 private:
  FakeNccl& nccl_;
  const int world_rank_;
  HostAllocator memory_;
};

inline void FakeNccl::RunAll(Clique& clique, std::vector<std::function<void()>>* notices) {
  while (!clique.aborted) {
    for (const auto& launched : clique.calls) {
      if (launched.empty()) return;
    }
    std::vector<NcclCalls> ranks;
    for (auto& launched : clique.calls) {
      ranks.push_back(std::move(launched.front()));
      launched.pop_front();
    }
    const bool messages = std::ranges::any_of(ranks, [](const NcclCalls& calls) {
      return std::ranges::any_of(calls, [](const NcclCall& call) {
        return call.kind == NcclCall::Kind::kSend || call.kind == NcclCall::Kind::kReceive ||
               call.kind == NcclCall::Kind::kCopy;
      });
    });
    if (messages) {
      RunMessages(ranks);
    } else {
      for (size_t i = 0; i < ranks[0].size(); ++i) RunCollective(ranks, i);
    }
    for (auto& ends : clique.ends) {
      ends.front()->done = true;
      std::ranges::move(ends.front()->notices, std::back_inserter(*notices));
      ends.pop_front();
    }
    ended_.notify_all();
  }
}

inline void FakeNccl::RunCollective(const std::vector<NcclCalls>& ranks, size_t i) {
  using Kind = NcclCall::Kind;
  const NcclCall& first = ranks[0].at(i);
  const size_t n = ranks.size(), bytes = first.count * SizeOf(first.dtype);
  std::vector<const std::byte*> from;
  for (const NcclCalls& calls : ranks) {
    const NcclCall& call = calls.at(i);
    CADRE_CHECK(call.kind == first.kind && call.count == first.count && call.dtype == first.dtype &&
                    call.op == first.op && call.peer == first.peer,
                "ranks launch different calls");
    from.push_back(call.from);
  }
  const bool parts = first.kind == Kind::kReduceScatter;
  std::vector<std::byte> result(bytes * (parts || first.kind == Kind::kAllGather ? n : 1));
  const auto peer = static_cast<size_t>(first.peer);
  switch (first.kind) {
    case Kind::kMeet:
      return;
    case Kind::kBroadcast:
      std::memcpy(result.data(), from[peer], bytes);
      break;
    case Kind::kAllGather:
      for (size_t r = 0; r < n; ++r) std::memcpy(result.data() + r * bytes, from[r], bytes);
      break;
    default:
      ReduceInRankOrder(first.dtype, first.op, from,
                        static_cast<int64_t>(first.count * (parts ? n : 1)), result.data());
  }
  for (size_t r = 0; r < n; ++r) {
    if (first.kind == Kind::kReduce && r != peer) continue;
    const std::byte* own = parts ? result.data() + r * bytes : result.data();
    std::memcpy(ranks[r][i].to, own, parts ? bytes : result.size());
  }
}

inline void FakeNccl::RunMessages(const std::vector<NcclCalls>& ranks) {
  using Kind = NcclCall::Kind;
  std::map<std::pair<int, int>, std::deque<NcclCall>> sent;
  for (size_t r = 0; r < ranks.size(); ++r) {
    for (const NcclCall& call : ranks[r]) {
      if (call.kind == Kind::kSend) sent[{static_cast<int>(r), call.peer}].push_back(call);
      if (call.kind == Kind::kCopy && call.to != call.from) {
        std::memcpy(call.to, call.from, call.count * SizeOf(call.dtype));
      }
    }
  }
  for (size_t r = 0; r < ranks.size(); ++r) {
    for (const NcclCall& call : ranks[r]) {
      if (call.kind != Kind::kReceive) continue;
      auto& queue = sent[{call.peer, static_cast<int>(r)}];
      CADRE_CHECK(!queue.empty() && queue.front().count == call.count, "no such message");
      std::memcpy(call.to, queue.front().from, call.count * SizeOf(call.dtype));
      queue.pop_front();
    }
  }
  for (const auto& [pair, queue] : sent) CADRE_CHECK(queue.empty(), "a message to nobody");
}

}  // namespace cadre
