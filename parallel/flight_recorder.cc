#include "parallel/flight_recorder.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <bitset>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>

#include "core/file.h"
#include "core/process_stat.h"

namespace cadre {
namespace {

constexpr uint64_t kMagic = 0x3254484749464443;  // "CDFIGHT2", little-endian
constexpr size_t kDurations = 32;

// What lies in the file, each guarded by a version of its own.
struct StoredOperation {
  uint64_t id = 0;
  uint32_t state = 0;
  uint32_t sequence = 0;
  uint64_t bytes = 0;
  int64_t queued_ns = 0;
  int64_t finished_ns = 0;
  int64_t peer = -1;
  int64_t thread = 0;
  char group[16] = {};
  char operation[24] = {};
  char label[96] = {};
};

struct StoredStatus {
  int64_t step = -1;
  int64_t step_began_ns = 0;
  uint64_t durations = 0;  // how many were ever recorded
  int64_t duration_ns[kDurations] = {};
  int64_t layer = -1;
  int64_t thread = 0;
  char activity[32] = {};
};

// A sequence lock: odd while a writer is in it. Words are atomic, so a reader may look at any time
// and throws away what changed under it; the version of the first write is 2.
template <typename T>
struct Guarded {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % sizeof(uint64_t) == 0);
  static constexpr size_t kWords = sizeof(T) / sizeof(uint64_t);

  // `change` gets the value under the lock and says whether to store it.
  template <typename Change>
  void Update(const Change& change) {
    uint64_t seen = version.load(std::memory_order_relaxed);
    while (seen % 2 != 0 ||
           !version.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire)) {
      if (seen % 2 != 0) sched_yield();
      seen = version.load(std::memory_order_relaxed);
    }
    std::array<uint64_t, kWords> copy;
    for (size_t i = 0; i < kWords; ++i) copy[i] = words[i].load(std::memory_order_relaxed);
    T value = std::bit_cast<T>(copy);
    if (change(value)) {
      copy = std::bit_cast<decltype(copy)>(value);
      // Release, so that no word is seen before the odd version is.
      for (size_t i = 0; i < kWords; ++i) words[i].store(copy[i], std::memory_order_release);
    }
    version.store(seen + 2, std::memory_order_release);
  }

  std::atomic<uint64_t> version;
  std::atomic<uint64_t> words[kWords];
};

struct Header {
  uint64_t magic;
  int64_t rank;
  int64_t pid;
  int64_t start_time;
};

struct Layout {
  Header header;
  std::atomic<uint64_t> begun;  // operations
  std::atomic<int64_t> progress_ns;
  Guarded<StoredStatus> status;
  Guarded<StoredOperation> operations[FlightRecorder::kRecords];
};
static_assert(std::atomic<uint64_t>::is_always_lock_free &&
              sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));

int64_t Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

template <size_t N>
void Put(char (&field)[N], std::string_view text) {
  std::memset(field, 0, N);
  std::memcpy(field, text.data(), std::min(text.size(), N));
}

// What a file says is shown on terminals: no byte of it may command them.
template <size_t N>
std::string Get(const char (&field)[N]) {
  std::string text(field, strnlen(field, N));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
  return text;
}

absl::Status MapLayout(const std::string& path, void** memory) {
  int file = -1;
  if (!path.empty()) {
    file = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0) return ErrnoError(path, "create the flight recorder", errno);
    // Taken now: a full disk found at a later store would be a SIGBUS.
    if (const int error = posix_fallocate(file, 0, sizeof(Layout)); error != 0) {
      close(file);
      unlink(path.c_str());
      return ErrnoError(path, "make room for the flight recorder", error);
    }
  }
  const int flags = path.empty() ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  *memory = mmap(nullptr, sizeof(Layout), PROT_READ | PROT_WRITE, flags, file, 0);
  const int error = errno;
  if (file >= 0) close(file);
  return *memory == MAP_FAILED ? ErrnoError(path, "map the flight recorder", error)
                               : absl::OkStatus();
}

// Three copies, one after the other: where the version in the first is even and the same as in the
// third, nothing was written while the second was taken. (A mapping would be one copy, but whoever
// cut the file would kill the reader by SIGBUS.)
struct Copies {
  std::array<std::vector<std::byte>, 3> bytes;

  absl::Status Read(const FileReader& file) {
    for (std::vector<std::byte>& copy : bytes) {
      copy.resize(sizeof(Layout));
      CADRE_RETURN_IF_ERROR(file.ReadAt(0, copy));
    }
    return absl::OkStatus();
  }
  template <typename T>
  T At(size_t copy, size_t offset) const {
    std::array<std::byte, sizeof(T)> value;
    std::memcpy(value.data(), bytes[copy].data() + offset, sizeof value);
    return std::bit_cast<T>(value);
  }
  template <typename T>
  bool Consistent(size_t offset, T* value) const {
    const uint64_t before = At<uint64_t>(0, offset), after = At<uint64_t>(2, offset);
    if (before != after || before % 2 != 0) return false;
    *value = At<T>(1, offset + offsetof(Guarded<T>, words));
    return true;
  }
};

constexpr int kAttempts = 16;

absl::Status ReadHeader(const FileReader& file, FlightSnapshot* snapshot) {
  Header header;
  CADRE_RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(&header, 1))));
  if (header.magic != kMagic || header.rank < 0 || header.rank > INT32_MAX) {
    return DataLoss("{}: no flight record: magic {:#x}, rank {}", file.path(), header.magic,
                    header.rank);
  }
  snapshot->rank = static_cast<int>(header.rank);
  snapshot->pid = header.pid;
  snapshot->start_time = header.start_time;
  return absl::OkStatus();
}

absl::Status TakeStatus(const std::string& path, const StoredStatus& stored,
                        FlightSnapshot* snapshot) {
  if (stored.layer < -1 || stored.layer > INT32_MAX || stored.step < -1) {
    return DataLoss("{}: no flight record: step {}, layer {}", path, stored.step, stored.layer);
  }
  snapshot->step = stored.step;
  snapshot->step_began_ns = stored.step_began_ns;
  snapshot->layer = static_cast<int>(stored.layer);
  snapshot->thread = stored.thread;
  snapshot->activity = Get(stored.activity);
  const uint64_t kept = std::min<uint64_t>(stored.durations, kDurations);
  for (uint64_t i = stored.durations - kept; i < stored.durations; ++i) {
    snapshot->step_durations_ns.push_back(stored.duration_ns[i % kDurations]);
  }
  return absl::OkStatus();
}

absl::Status TakeOperation(const std::string& path, size_t slot, const StoredOperation& stored,
                           FlightSnapshot* snapshot) {
  if (stored.id == 0) return absl::OkStatus();
  if ((stored.id - 1) % FlightRecorder::kRecords != slot ||
      stored.state > static_cast<uint32_t>(OperationState::kFailed) || stored.peer < -1 ||
      stored.peer > INT32_MAX) {
    return DataLoss("{}: no flight record: operation {} with state {} and peer {} in place {}",
                    path, stored.id, stored.state, stored.peer, slot);
  }
  snapshot->operations.push_back({.id = stored.id,
                                  .state = static_cast<OperationState>(stored.state),
                                  .sequence = stored.sequence,
                                  .peer = static_cast<int>(stored.peer),
                                  .group = Get(stored.group),
                                  .operation = Get(stored.operation),
                                  .label = Get(stored.label),
                                  .bytes = stored.bytes,
                                  .queued_ns = stored.queued_ns,
                                  .finished_ns = stored.finished_ns,
                                  .thread = stored.thread});
  return absl::OkStatus();
}

}  // namespace

struct FlightRecorder::File {
  Layout layout;
};

std::string_view Name(OperationState state) {
  switch (state) {
    case OperationState::kQueued:
      return "queued";
    case OperationState::kAwaited:
      return "awaited";
    case OperationState::kDone:
      return "done";
    case OperationState::kFailed:
      return "failed";
  }
  return "unknown";
}

absl::StatusOr<std::unique_ptr<FlightRecorder>> FlightRecorder::Create(const std::string& path,
                                                                       int rank) {
  void* memory = nullptr;
  CADRE_RETURN_IF_ERROR(MapLayout(path, &memory));
  std::unique_ptr<FlightRecorder> recorder(new FlightRecorder);
  recorder->path_ = path;
  recorder->file_ = static_cast<File*>(memory);  // zeros are its first state
  Layout& layout = recorder->file_->layout;
  layout.header.rank = rank;
  layout.header.pid = getpid();
  const absl::StatusOr<ProcessStat> stat = ReadProcessStat(getpid());
  layout.header.start_time = stat.ok() ? stat->start_time : 0;
  layout.status.Update([](StoredStatus& status) {
    status = StoredStatus();
    return true;
  });
  layout.progress_ns = Now();
  // Last: a file without it is one that is being made.
  std::atomic_ref(layout.header.magic).store(kMagic, std::memory_order_release);
  return recorder;
}

FlightRecorder::~FlightRecorder() { munmap(file_, sizeof(File)); }

uint64_t FlightRecorder::Begin(std::string_view group, std::string_view operation,
                               std::string_view label, uint32_t sequence, uint64_t bytes,
                               int peer) {
  Layout& layout = file_->layout;
  const uint64_t id = layout.begun.fetch_add(1, std::memory_order_relaxed) + 1;
  const int64_t now = Now();
  layout.operations[(id - 1) % kRecords].Update([&](StoredOperation& stored) {
    if (stored.id > id) return false;  // 1,024 others overtook this one
    stored = {.id = id,
              .state = static_cast<uint32_t>(OperationState::kQueued),
              .sequence = sequence,
              .bytes = bytes,
              .queued_ns = now,
              .peer = peer};
    Put(stored.group, group);
    Put(stored.operation, operation);
    Put(stored.label, label);
    return true;
  });
  layout.progress_ns.store(now, std::memory_order_relaxed);
  return id;
}

void FlightRecorder::SetState(uint64_t id, OperationState state) {
  if (id == 0) return;
  Layout& layout = file_->layout;
  const int64_t now = Now();
  const bool finished = state == OperationState::kDone || state == OperationState::kFailed;
  layout.operations[(id - 1) % kRecords].Update([&](StoredOperation& stored) {
    if (stored.id != id || stored.state >= static_cast<uint32_t>(state)) return false;
    stored.state = static_cast<uint32_t>(state);
    stored.finished_ns = finished ? now : 0;
    if (state == OperationState::kAwaited) stored.thread = gettid();
    return true;
  });
  layout.progress_ns.store(now, std::memory_order_relaxed);
}

void FlightRecorder::SetActivity(std::string_view activity, int layer) {
  file_->layout.status.Update([&](StoredStatus& status) {
    Put(status.activity, activity);
    status.layer = layer;
    status.thread = gettid();
    return true;
  });
  file_->layout.progress_ns.store(Now(), std::memory_order_relaxed);
}

void FlightRecorder::SetStep(int64_t step) {
  const int64_t now = Now();
  file_->layout.status.Update([&](StoredStatus& status) {
    if (status.step == step) return false;
    if (status.step >= 0) {
      status.duration_ns[status.durations++ % kDurations] = now - status.step_began_ns;
    }
    status.step = step;
    status.step_began_ns = now;
    status.thread = gettid();
    return true;
  });
  file_->layout.progress_ns.store(now, std::memory_order_relaxed);
}

absl::StatusOr<FlightSnapshot> ReadFlightRecord(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(const FileReader file, FileReader::Open(path));
  if (file.size() != sizeof(Layout)) {
    return DataLoss("{}: no flight record: {} bytes, {} expected", path, file.size(),
                    sizeof(Layout));
  }
  FlightSnapshot snapshot;
  CADRE_RETURN_IF_ERROR(ReadHeader(file, &snapshot));
  StoredStatus status;
  bool status_taken = false;
  std::bitset<FlightRecorder::kRecords> taken;
  Copies copies;
  for (int attempt = 0; attempt < kAttempts && !(status_taken && taken.all()); ++attempt) {
    CADRE_RETURN_IF_ERROR(copies.Read(file));
    status_taken = status_taken || copies.Consistent(offsetof(Layout, status), &status);
    for (size_t slot = 0; slot < FlightRecorder::kRecords; ++slot) {
      StoredOperation stored;
      const size_t offset = offsetof(Layout, operations) + slot * sizeof(Guarded<StoredOperation>);
      if (taken[slot] || !copies.Consistent(offset, &stored)) continue;
      taken[slot] = true;
      CADRE_RETURN_IF_ERROR(TakeOperation(path, slot, stored, &snapshot));
    }
  }
  snapshot.progress_ns = copies.At<int64_t>(2, offsetof(Layout, progress_ns));
  CADRE_RETURN_IF_ERROR(TakeStatus(path, status, &snapshot));
  std::sort(snapshot.operations.begin(), snapshot.operations.end(),
            [](const OperationRecord& a, const OperationRecord& b) { return a.id < b.id; });
  return snapshot;
}

}  // namespace cadre
