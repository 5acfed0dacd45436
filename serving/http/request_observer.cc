#include "serving/http/request_observer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace cadre {
namespace {

int64_t SteadyNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double Seconds(int64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-9; }

int64_t Nanoseconds(double seconds) { return std::llround(seconds * 1e9); }

void SetOnce(std::atomic<double>* slot, double value) {
  double unknown = -1;
  slot->compare_exchange_strong(unknown, value);
}

}  // namespace

std::string_view FinishName(FinishReason reason) {
  static constexpr std::string_view kNames[] = {"", "stop", "length", "cancelled", "error"};
  return kNames[static_cast<int>(reason)];
}

std::string_view FailureKind(const TokenEvent& event, bool timed_out) {
  if (event.finish == FinishReason::kCancelled) return timed_out ? "timeout" : "cancelled";
  if (event.finish != FinishReason::kError) return "";
  if (absl::IsResourceExhausted(event.error)) return "grammar_limit";
  return absl::IsInvalidArgument(event.error) ? "vocabulary" : "engine";
}

void RequestObserver::operator()(const TokenEvent& event) { Observe(event, SteadyNanoseconds()); }

void RequestObserver::Observe(const TokenEvent& event, int64_t now) {
  const double seconds = Seconds(now - arrived_ns);
  if (event.token >= 0) {
    ++tally->generation_tokens;
    if (++tokens == 1) {
      metrics->FirstToken(seconds);
      SetOnce(&tally->first_token_seconds, seconds);
    } else {
      metrics->NextToken(Seconds(now - last_ns));
    }
    if (tokens == 1) first_ns = now;
    last_ns = now;
  }
  if (event.finish == FinishReason::kNone) return;
  SetOnce(&tally->queue_seconds, event.queue_seconds);
  SetOnce(&tally->prefill_seconds, event.prefill_seconds);
  tally->finish = event.finish;
  const Phases phases = PhasesAt(event, now);
  metrics->Done({.reason = FinishName(event.finish),
                 .failure = FailureKind(event, tally->timed_out),
                 .generation_tokens = static_cast<int>(tokens),
                 .e2e_seconds = seconds,
                 .queue_seconds = Seconds(phases.scheduled - phases.queued),
                 .prefill_seconds = Seconds(phases.first - phases.scheduled),
                 .decode_seconds = Seconds(phases.last - phases.first)});
  if (trace != nullptr) Record(event, phases, now);
}

// The engine's times end at the first token, or at the end without one.
RequestObserver::Phases RequestObserver::PhasesAt(const TokenEvent& event, int64_t now) const {
  Phases phases{.first = tokens > 0 ? first_ns : now, .last = tokens > 0 ? last_ns : now};
  phases.scheduled = std::max(phases.first - Nanoseconds(event.prefill_seconds), arrived_ns);
  phases.queued = std::max(phases.scheduled - Nanoseconds(event.queue_seconds), arrived_ns);
  return phases;
}

void RequestObserver::Record(const TokenEvent& event, const Phases& phases, int64_t now) const {
  const std::string_view none;
  const std::string args =
      Trace::ToJson({{"request_id", call->request_id},
                     {"trace_id", call->trace ? std::string_view(call->trace->trace_id) : none},
                     {"parent_id", call->trace ? std::string_view(call->trace->parent_id) : none},
                     {"span_id", call->trace ? std::string_view(call->trace->span_id) : none},
                     {"finish", FinishName(event.finish)},
                     {"prompt_tokens", tally->prompt_tokens},
                     {"generation_tokens", tokens}});
  const int64_t offset =
      trace->Now() - SteadyNanoseconds();  // from the steady clock to the trace's
  auto span = [&](std::string_view name, int64_t from, int64_t to) {
    trace->Span("request", event.request_id, name, from + offset, to + offset, args);
  };
  span("request", arrived_ns, now);
  span("front", arrived_ns, phases.queued);
  span("queue", phases.queued, phases.scheduled);
  if (phases.scheduled < phases.first) span("prefill", phases.scheduled, phases.first);
  if (tokens > 1) span("decode", phases.first, phases.last);
}

}  // namespace cadre
