#include <gtest/gtest.h>

#include <cmath>

#include "bench/serve_load_search.h"

namespace cadre::bench {
namespace {

constexpr char kAzure[] =
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 23:59:59.5000000,374,44\r\n"
    "2023-11-17 00:00:01.2500000,396,109\r\n"
    "2023-11-17 00:00:00.0000000,91,16\r\n";
constexpr char kMooncake[] =
    R"({"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [7, 8, 9]})"
    "\n"
    R"({"timestamp": 4000, "input_length": 600, "output_length": 3, "hash_ids": [7, 11]})"
    "\n";

TEST(Traces, AzureTimesCrossMidnightAndAreSorted) {
  auto trace = ParseAzureTrace(kAzure, "a.csv");
  ASSERT_TRUE(trace.ok()) << Message(trace.status());
  ASSERT_EQ(trace->requests.size(), 3u);
  EXPECT_NEAR(trace->requests[1].at, 0.5, 1e-6);
  EXPECT_NEAR(trace->requests[2].at, 1.75, 1e-6);
  EXPECT_EQ(trace->requests[1].prompt_tokens, 91);
  EXPECT_EQ(trace->requests[2].output_tokens, 109);
}

TEST(Traces, MooncakeBlocksComeWithTheirIds) {
  auto trace = ParseMooncakeTrace(kMooncake, "m.jsonl");
  ASSERT_TRUE(trace.ok()) << Message(trace.status());
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->block_tokens, 512);
  EXPECT_NEAR(trace->requests[1].at, 3, 1e-9);
  EXPECT_EQ(trace->requests[0].blocks, (std::vector<int64_t>{7, 8, 9}));
}

TEST(Traces, ABadLineIsNamed) {
  const std::string header = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  for (const std::string& line : std::vector<std::string>{
           "2023-11-16 18:15:46,12", "2023-11-31 18:15:46,1,1", "2023-11-16 18:15:46,0,1",
           "2023-11-16 18:15:46,1,x", "2023-11-16 18:15:46,99999999999,1", "nonsense"}) {
    const auto trace = ParseAzureTrace(header + "2023-11-16 18:15:46,1,1\n" + line, "a.csv");
    EXPECT_NE(Message(trace.status()).find("a.csv:3: "), std::string::npos) << line;
  }
  EXPECT_FALSE(ParseAzureTrace("time,a,b\n", "a.csv").ok());
  for (const char* line :
       {"[]", "{", R"({"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]})",
        R"({"timestamp": 0, "input_length": -1, "output_length": 1, "hash_ids": []})",
        R"({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ["x"]})"}) {
    const auto trace = ParseMooncakeTrace(line, "m.jsonl");
    EXPECT_NE(Message(trace.status()).find("m.jsonl:1: "), std::string::npos) << line;
  }
}

TEST(Plans, ATraceIsScaledCutAndBounded) {
  auto trace = ParseAzureTrace(kAzure, "a.csv");
  ASSERT_TRUE(trace.ok());
  auto plan = MakePlan(
      {.rate_scale = 2, .length_scale = 0.5, .max_prompt_tokens = 190, .skip = 1, .requests = 10},
      *trace);
  ASSERT_TRUE(plan.ok()) << Message(plan.status());
  ASSERT_EQ(plan->requests.size(), 2u);
  EXPECT_NEAR(plan->requests[0].at, 0, 1e-9);
  EXPECT_NEAR(plan->requests[1].at, 1.25 / 2, 1e-6);
  EXPECT_EQ(plan->requests[0].prompt_tokens, 46);  // 91 / 2, rounded
  EXPECT_EQ(plan->requests[1].prompt_tokens, 190);
  EXPECT_EQ(plan->requests[1].output_tokens, 55);
  EXPECT_EQ(MakePlan({.rate_scale = 2, .duration = 0.3}, *trace)->requests.size(), 2u);
  EXPECT_FALSE(MakePlan({.requests = 1}, {}).ok());
  EXPECT_FALSE(MakePlan({}, *trace).ok());
  EXPECT_FALSE(MakePlan({.skip = 3, .requests = 1}, *trace).ok());
}

TEST(Plans, PoissonGapsHaveTheirMeanAndSpread) {
  auto plan = MakePlan({.rate = 4, .requests = 20000, .seed = 5}, {});
  ASSERT_TRUE(plan.ok());
  double sum = 0, squares = 0, before = 0;
  for (const PlannedRequest& request : plan->requests) {
    const double gap = request.at - before;
    before = request.at;
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / 20000, variance = squares / 20000 - mean * mean;
  EXPECT_NEAR(mean, 0.25, 0.25 * 0.03);
  EXPECT_NEAR(std::sqrt(variance), 0.25, 0.25 * 0.05);  // an exponential's spread is its mean
}

TEST(Plans, KeysGetTheirShares) {
  auto plan = MakePlan({.rate = 1, .requests = 10000, .key_weights = {9, 1}}, {});
  ASSERT_TRUE(plan.ok());
  int64_t second = 0;
  for (const PlannedRequest& request : plan->requests) second += request.key == 1;
  EXPECT_NEAR(static_cast<double>(second), 1000, 150);
}

TEST(Plans, EqualBlocksAreEqualTokensAndNothingElseIs) {
  auto trace = ParseMooncakeTrace(kMooncake, "m.jsonl");
  ASSERT_TRUE(trace.ok());
  auto plan = MakePlan({.length_scale = 0.25, .requests = 2}, *trace);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->block_tokens, 128);
  const auto one = PromptTokens(*plan, 0, 1000), two = PromptTokens(*plan, 1, 1000);
  ASSERT_EQ(one.size(), 275u);
  ASSERT_EQ(two.size(), 150u);
  EXPECT_TRUE(std::equal(one.begin(), one.begin() + 128, two.begin()));
  EXPECT_FALSE(std::equal(two.begin() + 128, two.end(), one.begin() + 128));
  EXPECT_FALSE(std::equal(one.begin(), one.begin() + 128, one.begin() + 128));
  plan->salt = 1;
  EXPECT_NE(PromptTokens(*plan, 0, 1000), one);
}

TEST(Percentiles, AreNearestRanks) {
  std::vector<double> values = {5, 1, 4, 2, 3};
  EXPECT_EQ(Percentile(values, 0.5), 3);
  EXPECT_EQ(Percentile(values, 0.9), 5);
  EXPECT_EQ(Percentile(values, 0.2), 1);
  EXPECT_EQ(Percentile(values, 0), 1);
  std::vector<double> none;
  EXPECT_TRUE(std::isnan(Percentile(none, 0.5)));
}

Outcome Answer(double ttft, std::vector<float> gaps) {
  return {.scheduled = 10, .sent = 11, .first = 10 + ttft, .last = 20, .gaps = std::move(gaps)};
}

TEST(Slos, CountFromTheScheduledArrivalAndBoundTheirShareOfGaps) {
  const Slo slo{.ttft = 2, .itl = 0.5, .gap_share = 0.9};
  EXPECT_TRUE(Good(Answer(2, {}), slo));
  EXPECT_FALSE(Good(Answer(2.5, {}), slo));  // though 1.5 s after it was sent
  std::vector<float> gaps(10, 0.1F);
  gaps[3] = 9;
  EXPECT_TRUE(Good(Answer(1, gaps), slo));
  EXPECT_FALSE(Good(Answer(1, gaps), {.ttft = 2, .itl = 0.5, .gap_share = 1}));
  gaps[4] = 9;
  EXPECT_FALSE(Good(Answer(1, gaps), slo));
  Outcome failed = Answer(1, {});
  failed.error = "HTTP 429";
  EXPECT_FALSE(Good(failed, slo));
  const Report report =
      MakeReport({.outcomes = {Answer(1, {}), Answer(3, {}), failed}, .seconds = 5}, slo);
  EXPECT_EQ(report.good, 1u);
  EXPECT_EQ(report.late, 1u);
  EXPECT_EQ(report.slow, 0u);
  EXPECT_EQ(report.whole, 2u);
  EXPECT_EQ(report.errors.at("HTTP 429"), 1u);
  EXPECT_NEAR(report.lag.p50, 1, 1e-9);
}

// What a check makes of a stream that comes in pieces of `piece` bytes, one a second.
Outcome Checked(const std::string& stream, size_t piece, StreamCheck::Expected expected) {
  simdjson::dom::parser parser;
  StreamCheck check(&parser);
  Outcome outcome;
  double now = 1;
  for (size_t at = 0; at < stream.size(); at += piece, ++now) {
    check.Feed(std::string_view(stream).substr(at, piece), now, &outcome);
  }
  check.End(expected, &outcome);
  return outcome;
}

constexpr char kOne[] =
    "data: {\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":null}]}\n\n";
constexpr char kLast[] =
    "data: {\"choices\":[{\"index\":0,\"text\":\"b\",\"finish_reason\":\"length\"}]}\r\n\r\n";
constexpr char kUsage[] =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,"
    "\"prompt_tokens_details\":{\"cached_tokens\":1}}}\n\n";
constexpr char kDone[] = "data: [DONE]\n\n";

TEST(Streams, AWholeAnswerIsWholeHoweverItsBytesCome) {
  const std::string stream = std::string(kOne) + ": comment\n\n" + kLast + kUsage + kDone;
  for (size_t piece : {size_t{1}, size_t{7}, stream.size()}) {
    const Outcome outcome = Checked(stream, piece, {3, 2});
    EXPECT_EQ(outcome.error, "");
    EXPECT_EQ(outcome.gaps.size(), 1u);
    EXPECT_EQ(outcome.output_tokens, 2);
    EXPECT_EQ(outcome.cached_tokens, 1);
  }
  // An event counts from the end of its line on.
  const size_t first = stream.find('\n'), second = stream.find('\n', stream.find("length"));
  EXPECT_EQ(Checked(stream, 1, {3, 2}).gaps[0], static_cast<float>(second - first));
}

TEST(Streams, TokensThatCameTogetherShareTheirTime) {
  const std::string two =
      "data: {\"choices\":[{\"index\":0,\"text\":\"b\",\"token_ids\":[5,6],"
      "\"finish_reason\":\"length\"}]}\n\n";
  const std::string stream = kOne + two + kUsage + kDone;
  const float between = static_cast<float>(two.find('\n') + 2);
  EXPECT_EQ(Checked(stream, 1, {3, 2}).gaps, std::vector<float>(2, between / 2));
}

TEST(Streams, WhatIsWrongIsNamed) {
  const std::string one(kOne), last(kLast), usage(kUsage), done(kDone);
  auto error = [](const std::string& stream) { return Checked(stream, 64, {3, 2}).error; };
  EXPECT_EQ(error(one + last + usage), "stream broke off");
  EXPECT_EQ(error(one + one + usage + done), "not one finish_reason");
  EXPECT_EQ(error(one + last + last + usage + done), "not one finish_reason");
  EXPECT_EQ(error(one + last + done), "no usage");
  EXPECT_EQ(error(one + last + usage + done + one), "event after [DONE]");
  EXPECT_EQ(error("data: {\"error\":{\"message\":\"x\"}}\n\n" + done), "error event");
  EXPECT_EQ(error("data: {oops\n\n" + done), "event is no JSON");
  EXPECT_EQ(Checked(one + last + usage + done, 64, {3, 3}).error, "wrong completion_tokens");
  EXPECT_EQ(Checked(one + last + usage + done, 64, {4, 2}).error, "wrong prompt_tokens");
}

TEST(Search, FindsTheEdgeFromBothSides) {
  for (double start : {0.3, 50.0}) {
    int runs = 0;
    const SearchResult found = FindHighestRate({.start = start, .steps = 8}, [&](double rate) {
      ++runs;
      return rate <= 7 ? 1.0 : 0.5;
    });
    EXPECT_LE(found.rate, 7);
    EXPECT_GT(found.rate, 7 * 0.99);
    EXPECT_EQ(found.tried.size(), static_cast<size_t>(runs));
  }
  EXPECT_EQ(FindHighestRate({}, [](double) { return 0.0; }).rate, 0);
  const SearchResult bounded = FindHighestRate({.lowest = 0.3}, [](double) { return 0.0; });
  EXPECT_EQ(bounded.tried.size(), 2u);  // 1 and 0.5
}

TEST(Urls, AreOfHttp) {
  auto target = ParseUrl("http://127.0.0.1:8000/a/");
  ASSERT_TRUE(target.ok());
  EXPECT_EQ(target->host + "|" + target->port + "|" + target->path, "127.0.0.1|8000|/a");
  EXPECT_EQ(ParseUrl("http://h")->port, "80");
  for (const char* url : {"https://h:1", "h:1", "http://:1", "http://h:"}) {
    EXPECT_FALSE(ParseUrl(url).ok()) << url;
  }
}

}  // namespace
}  // namespace cadre::bench
