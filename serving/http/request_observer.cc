#include "serving/http/request_observer.h"

#include <algorithm>
#include <chrono>

namespace cadre {
namespace {

int64_t SteadyNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void SetOnce(std::atomic<double>* slot, double value) {
  double unknown = -1;
  slot->compare_exchange_strong(unknown, value);
}

}  // namespace

std::string_view FinishName(FinishReason reason) {
  static constexpr std::string_view kNames[] = {"", "stop", "length", "cancelled", "error"};
  return kNames[static_cast<int>(reason)];
}

void RequestObserver::operator()(const TokenEvent& event) {
  const int64_t now = SteadyNanoseconds();
  const double seconds = static_cast<double>(now - arrived_ns) * 1e-9;
  if (event.token >= 0) {
    ++tally->generation_tokens;
    if (++tokens == 1) {
      metrics->FirstToken(seconds);
      SetOnce(&tally->first_token_seconds, seconds);
    } else {
      metrics->NextToken(static_cast<double>(now - last_ns) * 1e-9);
    }
    if (tokens == 1) first_ns = now;
    last_ns = now;
  }
  if (event.finish == FinishReason::kNone) return;
  SetOnce(&tally->queue_seconds, event.queue_seconds);
  SetOnce(&tally->prefill_seconds, event.prefill_seconds);
  tally->finish = event.finish;
  metrics->Done({.reason = FinishName(event.finish),
                 .generation_tokens = static_cast<int>(tokens),
                 .e2e_seconds = seconds,
                 .queue_seconds = event.queue_seconds,
                 .prefill_seconds = event.prefill_seconds});
  if (trace != nullptr) Record(event, now);
}

// The engine's spans lie one after the other from the request's arrival; what the front needed
// before the engine got it counts as queueing.
void RequestObserver::Record(const TokenEvent& event, int64_t now) const {
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
  const int64_t first = tokens > 0 ? first_ns : now;
  const auto prefill = static_cast<int64_t>(event.prefill_seconds * 1e9);
  const int64_t scheduled = std::clamp(first - prefill, arrived_ns, first);
  auto span = [&](std::string_view name, int64_t from, int64_t to) {
    trace->Span("request", event.request_id, name, from + offset, to + offset, args);
  };
  span("request", arrived_ns, now);
  span("queue", arrived_ns, scheduled);
  if (scheduled < first) span("prefill", scheduled, first);
  if (tokens > 1) span("decode", first, last_ns);
}

}  // namespace cadre
