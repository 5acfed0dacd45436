// What one sequence's events say about it: to the metrics, to the request's tally for the access
// log, and to the Chrome trace. Lives in the sequence's route, on the event hub's thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "core/trace.h"
#include "serving/http/call_info.h"
#include "serving/http/metrics.h"
#include "serving/request.h"

namespace cadre {

// The sum over one answer's sequences; written by the hub's thread, read by any.
struct AnswerTally {
  int64_t prompt_tokens = 0;  // of all prompts; set before it is shared
  std::atomic<int64_t> generation_tokens{0};
  // Negative: not known yet. The first sequence that knows says it for all.
  std::atomic<double> first_token_seconds{-1};
  std::atomic<double> queue_seconds{-1};
  std::atomic<double> prefill_seconds{-1};
  std::atomic<FinishReason> finish{FinishReason::kNone};  // of the sequence that ended last
  std::atomic<bool> timed_out{false};  // what is cancelled from now on was too slow
};

// stop, length, cancelled, error; empty for kNone.
std::string_view FinishName(FinishReason reason);

// cancelled, timeout, grammar_limit (a grammar's work is over its bound), vocabulary (no token goes
// on as the grammar asks), engine; empty where the sequence ended well.
std::string_view FailureKind(const TokenEvent& event, bool timed_out);

struct RequestObserver {
  ServingMetrics* metrics = nullptr;
  Trace* trace = nullptr;  // null: none
  std::shared_ptr<const CallInfo> call;
  std::shared_ptr<AnswerTally> tally;
  int64_t arrived_ns = 0;             // steady clock: the header was read
  int64_t first_ns = 0, last_ns = 0;  // of the sequence's tokens
  int64_t tokens = 0;

  void operator()(const TokenEvent& event);
  // now: steady clock.
  void Observe(const TokenEvent& event, int64_t now);

 private:
  // Where a sequence's phases begin, one after the other: metrics and trace tell the same.
  struct Phases {
    int64_t queued = 0;     // up to here the front had the request: its body, its text
    int64_t scheduled = 0;  // prefill
    int64_t first = 0;      // decode
    int64_t last = 0;
  };
  Phases PhasesAt(const TokenEvent& event, int64_t now) const;
  void Record(const TokenEvent& event, const Phases& phases, int64_t now) const;
};

}  // namespace cadre
