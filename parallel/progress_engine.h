// ProgressEngine: steps every operation of a rank that is in flight, whatever its group. One per
// rank, with one thread.
//
// Whoever waits drives: a caller in Work::Wait steps the engine itself and sleeps on the rank's
// doorbell, so a blocking collective costs no change of threads; while the caller computes, the
// progress thread sleeps there. All state is under one lock, held for steps that never block.
//
// The first lost peer, message error or time-out fails every operation in flight and every later
// one with the same cause, and tells the peers. The transports end there and then, so when a failed
// Work is done nothing touches its tensors any more.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "parallel/collective.h"
#include "parallel/communicator.h"
#include "parallel/doorbell.h"
#include "parallel/flight_recorder.h"
#include "parallel/transport.h"

namespace cadre {

class Trace;

// What an operation is, for those who read about it.
struct OperationInfo {
  std::string group;
  std::string_view operation;  // "all_reduce"; static
  std::string label;
  int layer = -1, bucket = -1;
  uint32_t sequence = 0;
  uint64_t bytes = 0;
  int peer = -1;           // point to point: the other rank of the world
  std::string_view ranks;  // of the group, for traces
};

// Everything that one operation needs until it is done.
struct OperationPlan {
  OperationInfo info;
  Messages messages;
  std::shared_ptr<const void> group;  // owns what info and messages borrow
  std::vector<Tensor> pinned;
  std::chrono::milliseconds timeout{0};  // 0: the engine's
  std::function<Collective(const Messages&)> begin;
};

class ProgressEngine {
 public:
  struct Options {
    Doorbell::State* doorbell = nullptr;
    std::vector<std::unique_ptr<Transport>> transports;
    FlightRecorder* recorder = nullptr;  // outlives the engine; never null
    std::chrono::milliseconds timeout = std::chrono::minutes(10);  // of one operation
  };

  explicit ProgressEngine(Options options);
  // Operations in flight fail.
  ~ProgressEngine();
  ProgressEngine(const ProgressEngine&) = delete;
  ProgressEngine& operator=(const ProgressEngine&) = delete;

  // Sends what can be sent at once and returns. Any thread.
  WorkPtr Start(OperationPlan plan);

  // Records operations from now on, and what callers wait for; null: no more. Outlives this. Called
  // while nobody uses a communicator.
  void set_trace(Trace* trace);

  StagingPool& staging() { return staging_; }
  // The first failure; OK until there is one.
  absl::Status status();

 private:
  struct Operation;
  class EngineWork;
  using Clock = std::chrono::steady_clock;
  using Lock = std::unique_lock<std::mutex>;

  void Run();
  absl::Status Wait(EngineWork& work);
  void Drive(EngineWork& work, Lock& lock);
  void Step();
  bool StepOperations();
  uint32_t RingsNeeded() const;
  bool Arm();
  void Settle(Seat seat);
  void WakeDriverIfDone();
  void CheckNow();
  void CheckDeadlines(Clock::time_point now);
  void Finish(const std::shared_ptr<Operation>& operation, const absl::Status& status);
  void DrawFlights();
  static void DrawFlight(Trace& trace, const Operation& operation);
  // What a rank that gave up has told of and no step has seen yet.
  std::optional<PeerLoss> Announced();
  void FailAll(const PeerLoss& loss);
  void EndAfterFailure();
  std::string DescribeLoss(const PeerLoss& loss) const;

  Doorbell doorbell_;
  std::vector<std::unique_ptr<Transport>> transports_;
  FlightRecorder* const recorder_;
  const std::chrono::milliseconds timeout_;

  // Lines are written without the engine's lock. Held by who writes or changes trace_; taken first.
  std::mutex drawing_;
  Trace* trace_ = nullptr;

  std::mutex mutex_;                                 // of everything below
  std::vector<std::shared_ptr<Operation>> undrawn_;  // that ended
  StagingPool staging_;
  std::list<std::shared_ptr<Operation>> in_flight_;  // oldest first
  absl::Status failure_;
  Clock::time_point next_check_;
  const EngineWork* driven_ =
      nullptr;  // what the driving caller waits for; null: the thread drives
  bool stopping_ = false;
  int bystanders_ = 0;  // callers that wait while another one drives
  std::condition_variable finished_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace cadre
