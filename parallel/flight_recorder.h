// FlightRecorder: what a rank's last 1,024 collectives were and what it was doing, in a file of
// shared memory that others can read while the rank hangs, is stopped, or is dead.
//
// Recording costs a few stores. Begin, SetState and SetActivity may be called from any thread of
// the rank. The file outlives the process; whoever made the folder removes it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre {

// An operation in flight is awaited once a thread of the rank waits for it: only then does it hold
// the rank up.
enum class OperationState : uint32_t { kQueued, kAwaited, kDone, kFailed };

// "queued", "awaited", "done", "failed".
std::string_view Name(OperationState state);

// One collective as it is recorded. Texts are cut to their fields.
struct OperationRecord {
  uint64_t id = 0;  // counts up from 1 in each rank, over all groups
  OperationState state = OperationState::kQueued;
  uint32_t sequence = 0;  // the operation's number in its group, equal on all its ranks
  int peer = -1;      // point to point: the other rank of the world; sequence is between the two
  std::string group;  // "tp", "dp"
  std::string operation;  // "all_reduce"
  std::string label;      // "layer 3 mlp"
  uint64_t bytes = 0;
  int64_t queued_ns = 0;    // CLOCK_MONOTONIC, comparable over the processes of a host
  int64_t finished_ns = 0;  // 0 while it is not
  int64_t thread = 0;       // that waited for it, 0: none
};

class FlightRecorder {
 public:
  static constexpr int kRecords = 1024;

  // Creates and maps `path` with mode 0600; an empty path keeps the records in this process alone.
  static absl::StatusOr<std::unique_ptr<FlightRecorder>> Create(const std::string& path, int rank);
  ~FlightRecorder();
  FlightRecorder(const FlightRecorder&) = delete;
  FlightRecorder& operator=(const FlightRecorder&) = delete;

  // Records a new operation as queued and returns its id.
  uint64_t Begin(std::string_view group, std::string_view operation, std::string_view label,
                 uint32_t sequence, uint64_t bytes, int peer = -1);
  // Ignored where the record has been overwritten, or has that state or a later one. kAwaited: by
  // the calling thread.
  void SetState(uint64_t id, OperationState state);

  // By the thread that computes: what ("forward", layer 3), and the training step that it is in. A
  // change of step also records how long the last one took.
  void SetActivity(std::string_view activity, int layer);
  void SetStep(int64_t step);

 private:
  struct File;
  FlightRecorder() = default;

  File* file_ = nullptr;
  std::string path_;
};

// A consistent copy of one recorder, whoever owns it.
struct FlightSnapshot {
  int rank = -1;
  int64_t pid = 0;
  int64_t start_time = 0;  // of the process, in clock ticks since boot (/proc/PID/stat)
  int64_t step = -1;       // -1: none begun
  int64_t step_began_ns = 0;
  std::vector<int64_t> step_durations_ns;  // the newest few, oldest first
  int64_t progress_ns = 0;                 // when anything was last recorded
  std::string activity;                    // "forward", empty: none
  int layer = -1;
  int64_t thread = 0;                       // that computes, 0: not known
  std::vector<OperationRecord> operations;  // oldest first, at most kRecords
};

// Reads a recorder's file, which may be torn or hostile: bounds are checked and texts cut.
// kDataLoss: not a recorder's file; kNotFound.
absl::StatusOr<FlightSnapshot> ReadFlightRecord(const std::string& path);

}  // namespace cadre
