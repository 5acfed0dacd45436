// What is known of one HTTP request beside its body: how logs, traces and quotas call it.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace cadre {

// A W3C trace context (https://www.w3.org/TR/trace-context/): the caller's trace, and the span in
// it that this request became.
struct TraceContext {
  std::string trace_id;   // 32 lower-case hexadecimal digits, not all zero
  std::string parent_id;  // the caller's span, 16 of them
  std::string span_id;    // ours
  std::string flags;      // 2 of them

  // As a traceparent header has it, with our span.
  std::string Header() const;
};

// Nothing where `header` is no traceparent; a version after 00 is read as far as 00 goes. The span
// is not filled in.
std::optional<TraceContext> ParseTraceParent(std::string_view header);

// Whether a client's X-Request-Id may be taken over: 1 to 128 of [A-Za-z0-9._:=@/+-].
bool IsRequestId(std::string_view text);

struct CallInfo {
  std::string request_id;  // the client's X-Request-Id, else one of ours
  std::string key;         // what the key is called (ApiKeys::Find); empty without
  std::optional<TraceContext> trace;
};

// Names that are not used twice, nor by another process. Any thread.
class IdSource {
 public:
  IdSource();
  std::string RequestId();
  std::string SpanId();  // 16 hexadecimal digits, not all zero

 private:
  const uint64_t base_;
  std::atomic<uint64_t> next_{0};
};

}  // namespace cadre
