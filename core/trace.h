// Chrome's trace events (JSON array format): opens in Perfetto and chrome://tracing.
//
//   CADRE_ASSIGN_OR_RETURN(auto trace, Trace::Create(path));     // --trace FILE
//   context.trace = trace.get();                                 // null: off
//   { TraceScope scope(context.trace, "forward", {{"layer", 3}}); ... }
//   CADRE_RETURN_IF_ERROR(trace->Close());
//
// Off, a scope costs a test of a null pointer. On, events are gathered in memory and written every
// 64 KiB; a file that a crash cut short still opens. Any thread may record at any time before
// Close; the first error of the file is what Close returns.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/status.h"

namespace cadre {

// One named value of an event. Borrows its texts for the call.
struct TraceArg {
  template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
  TraceArg(std::string_view key, Number value) : key(key), number(static_cast<double>(value)) {}
  TraceArg(std::string_view key, std::string_view value) : key(key), text(value), is_text(true) {}
  TraceArg(std::string_view key, const char* value) : TraceArg(key, std::string_view(value)) {}

  std::string_view key;
  double number = 0;
  std::string_view text;
  bool is_text = false;
};
using TraceArgs = std::initializer_list<TraceArg>;

// Names that the parts of a trace over several ranks are merged by (parallel/trace_merge.h).
inline constexpr std::string_view kTraceRank = "cadre_rank";
inline constexpr std::string_view kTraceCompute = "compute";  // the thread that computes
inline constexpr std::string_view kTraceWait = "wait";
inline constexpr std::string_view kTraceCollective = "collective";

// Whose part of a run's trace a file is.
struct TraceRank {
  int rank = 0;
  std::string name;             // "rank 2 (tp 0, dp 1)"
  std::string run;              // the same in all parts of one run
  int64_t clock_offset_ns = 0;  // to add to this host's monotonic clock for rank 0's
  int64_t clock_bound_ns = 0;   // how far off that may be
};

class Trace {
 public:
  static absl::StatusOr<std::unique_ptr<Trace>> Create(const std::string& path);
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;
  ~Trace();

  // Nanoseconds since Create, on a clock that never goes back.
  int64_t Now() const;
  // Something that this thread did from `begin` to `end` (Now's).
  void Complete(std::string_view name, int64_t begin, int64_t end, const std::string& args_json);
  // That this thread waited from `begin` to `end`.
  void Wait(std::string_view name, int64_t begin, int64_t end, const std::string& args_json);
  // A collective that was in flight from `begin` to `end`, beside what the threads did.
  void Flight(std::string_view name, int64_t begin, int64_t end, std::string args_json);
  // A part, from `begin` to `end`, of one long story that runs beside what the threads do, such as a
  // phase of a request. Those of one category and id are drawn together.
  void Span(std::string_view category, uint64_t id, std::string_view name, int64_t begin,
            int64_t end, const std::string& args_json);
  // A moment on this thread.
  void Instant(std::string_view name, TraceArgs args = {});
  // A value over time, drawn as a graph.
  void Counter(std::string_view name, double value);
  // Before any other event.
  void SetRank(const TraceRank& rank);
  // How this thread is called in the drawing.
  void NameThread(std::string_view name);

  // Writes what is left and closes the file; later events are dropped.
  absl::Status Close();

  // The arguments as a JSON object; "{}" without any.
  static std::string ToJson(TraceArgs args);

 private:
  Trace(std::string path, int descriptor);
  void Add(const std::string& event);
  void Flush();

  const std::string path_;
  const int64_t start_;  // of the steady clock, nanoseconds
  std::mutex mutex_;     // of all below
  int descriptor_;
  std::string buffer_;
  bool first_ = true;
  int64_t flights_ = 0;
  absl::Status status_;
};

// From its construction to the end of its block, on one thread. `name` outlives the scope.
class TraceScope {
 public:
  TraceScope(Trace* trace, std::string_view name, TraceArgs args = {}) : trace_(trace) {
    if (trace_ != nullptr) Begin(name, args);
  }
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;
  ~TraceScope() {
    if (trace_ != nullptr) trace_->Complete(name_, begin_, trace_->Now(), args_);
  }

 private:
  void Begin(std::string_view name, TraceArgs args);
  Trace* trace_;
  std::string_view name_;
  int64_t begin_ = 0;
  std::string args_;
};

}  // namespace cadre
