#include "serving/http/request_observer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "core/file.h"
#include "serving/http/json_fields.h"

namespace cadre {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

// After a trace's beginning, whatever the clock says now.
int64_t At(int64_t seconds) {
  static const int64_t base = std::chrono::duration_cast<std::chrono::nanoseconds>(
                                  std::chrono::steady_clock::now().time_since_epoch())
                                  .count();
  return base + seconds * kSecond;
}

class RequestObserverTest : public testing::Test {
 protected:
  RequestObserverTest() {
    observer_.metrics = &metrics_;
    observer_.tally = std::make_shared<AnswerTally>();
    observer_.call = std::make_shared<CallInfo>();
    observer_.arrived_ns = At(100);
  }
  double Value(const std::string& sample) {
    const std::string text = "\n" + metrics_.Scrape({}, {}, {}, {});
    const size_t at = text.find("\n" + sample + " ");
    EXPECT_NE(at, std::string::npos) << sample;
    return at == std::string::npos ? -1
                                   : std::strtod(text.c_str() + at + sample.size() + 2, nullptr);
  }
  double Sum(const std::string& histogram) { return Value("cadre_" + histogram + "_seconds_sum"); }

  ServingMetrics metrics_;
  RequestObserver observer_;
};

// Five seconds in the front, two in the queue, three of prefill, a token a second.
void ThreeTokens(RequestObserver& observer) {
  observer.Observe({.request_id = 4, .token = 1}, At(110));
  observer.Observe({.request_id = 4, .token = 1}, At(111));
  observer.Observe({.request_id = 4,
                    .token = 1,
                    .finish = FinishReason::kLength,
                    .queue_seconds = 2,
                    .prefill_seconds = 3},
                   At(112));
}

TEST_F(RequestObserverTest, WhatTheFrontNeededIsNoDecoding) {
  ThreeTokens(observer_);
  EXPECT_DOUBLE_EQ(Sum("time_to_first_token"), 10);
  EXPECT_DOUBLE_EQ(Sum("e2e_request_latency"), 12);
  EXPECT_DOUBLE_EQ(Sum("request_queue_time"), 2);
  EXPECT_DOUBLE_EQ(Sum("request_prefill_time"), 3);
  EXPECT_DOUBLE_EQ(Sum("request_decode_time"), 2);
  EXPECT_DOUBLE_EQ(Sum("request_inference_time"), 5);
  EXPECT_DOUBLE_EQ(Sum("request_time_per_output_token"), 1);
}

TEST_F(RequestObserverTest, TheTracesSpansAreTheMetricsTimes) {
  const std::string path = testing::TempDir() + "/request_observer_trace.json";
  std::unique_ptr<Trace> trace = *Trace::Create(path);
  observer_.trace = trace.get();
  ThreeTokens(observer_);
  ASSERT_TRUE(trace->Close().ok());
  std::map<std::string, double> seconds;  // in microseconds there
  for (const Json& event : Json::parse(ReadFile(path).value())) {
    if (event.value("cat", "") != "request") continue;
    seconds[event["name"]] += (event["ph"] == "e" ? 1e-6 : -1e-6) * event["ts"].get<double>();
  }
  const std::map<std::string, double> expected = {
      {"request", 12}, {"front", 5}, {"queue", 2}, {"prefill", 3}, {"decode", 2}};
  ASSERT_EQ(seconds.size(), expected.size());
  for (const auto& [name, length] : expected) EXPECT_NEAR(seconds[name], length, 1e-4) << name;
  std::filesystem::remove(path);
}

TEST_F(RequestObserverTest, FailuresAreToldApart) {
  const std::pair<TokenEvent, const char*> ends[] = {
      {{.finish = FinishReason::kCancelled}, "cancelled"},
      {{.finish = FinishReason::kError, .error = ResourceExhausted("too many parses")},
       "grammar_limit"},
      {{.finish = FinishReason::kError, .error = InvalidArgument("no token")}, "vocabulary"},
      {{.finish = FinishReason::kError, .error = Unavailable("rank 1 is lost")}, "engine"},
      {{.finish = FinishReason::kError, .error = Internal("it broke")}, "engine"}};
  std::map<std::string, double> expected;
  for (const auto& [event, kind] : ends) {
    observer_.Observe(event, At(101));
    ++expected[kind];
  }
  observer_.tally->timed_out = true;
  observer_.Observe({.finish = FinishReason::kCancelled}, At(101));
  expected["timeout"] = 1;
  for (const auto& [kind, count] : expected) {
    EXPECT_EQ(Value("cadre_request_failure_total{kind=\"" + kind + "\"}"), count) << kind;
  }
  EXPECT_EQ(Value("cadre_request_success_total{finished_reason=\"stop\"}"), 0);
}

}  // namespace
}  // namespace cadre
