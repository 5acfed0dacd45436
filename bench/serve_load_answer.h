// Checks one streamed completion as its bytes come: what is measured of it, and whether it is
// whole.
#pragma once

#include <simdjson.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cadre::bench {

// One request's fate. Times are seconds on the run's clock; latencies count from `scheduled`, when
// the plan wanted it sent, so a client that falls behind makes no answer look faster.
struct Outcome {
  size_t key = 0;
  double scheduled = 0, sent = 0, first = 0, last = 0;
  // Seconds between the chunks that brought text. A chunk of several tokens, whose text was held
  // back for its last one, counts as several where it names them: each has its part of the time.
  std::vector<float> gaps;
  int64_t prompt_tokens = 0, output_tokens = 0, cached_tokens = 0;  // as the server's usage says
  std::string error;  // its kind; empty: the answer is whole and as asked

  bool ok() const { return error.empty(); }
  double ttft() const { return first - scheduled; }
  double e2e() const { return last - scheduled; }
};

// Reads server-sent events of /v1/completions. Feed the body's bytes as they come, then End.
class StreamCheck {
 public:
  struct Expected {
    int64_t prompt_tokens = 0, output_tokens = 0;
  };

  // The parser may serve other streams between two calls.
  explicit StreamCheck(simdjson::dom::parser* parser) : parser_(parser) {}

  void Feed(std::string_view bytes, double now, Outcome* outcome);
  // Fills `error` where the stream is not what was asked: broken off, not one finish_reason, no
  // usage, other token counts.
  void End(const Expected& expected, Outcome* outcome);

 private:
  void Event(std::string_view data, double now, Outcome* outcome);
  void Fail(std::string kind);

  simdjson::dom::parser* parser_;
  std::string line_;  // the part of a line that has come
  std::string error_;
  int finish_reasons_ = 0;
  std::string finish_;
  bool done_ = false, usage_ = false;
};

}  // namespace cadre::bench
