// /metrics against the vocabulary that dashboards and alerts are written in: every name, type,
// label and bucket, read by a strict parser of the text format.
#include "serving/http/metrics.h"

#include <gtest/gtest.h>

#include <charconv>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace cadre {
namespace {

struct Family {
  std::string type;
  std::vector<std::string> buckets;  // of a histogram, in order
  std::set<std::string> labels;      // their names, without `le`
  std::map<std::string, double> samples;
};
using Families = std::map<std::string, Family>;

bool IsName(std::string_view text) {
  return !text.empty() &&
         text.find_first_not_of("abcdefghijklmnopqrstuvwxyz_0123456789") == std::string_view::npos;
}

// The labels of a sample, `{a="b",c="d"}`; no value here has quotes or backslashes in it.
std::map<std::string, std::string> ParseLabels(std::string text) {
  std::map<std::string, std::string> labels;
  while (!text.empty()) {
    const size_t equals = text.find("=\""), end = text.find('"', equals + 2);
    EXPECT_NE(end, std::string::npos) << text;
    if (end == std::string::npos) break;
    const std::string name = text.substr(0, equals);
    EXPECT_TRUE(IsName(name)) << text;
    EXPECT_TRUE(labels.emplace(name, text.substr(equals + 2, end - equals - 2)).second) << text;
    text = text.substr(end + 1);
    if (text.starts_with(',')) text = text.substr(1);
  }
  return labels;
}

// The family that a sample belongs to: its own name, or a histogram's with a suffix.
std::string FamilyOf(const Families& families, const std::string& name) {
  for (const char* suffix : {"_bucket", "_sum", "_count"}) {
    if (!name.ends_with(suffix)) continue;
    const std::string base = name.substr(0, name.size() - std::string_view(suffix).size());
    auto found = families.find(base);
    if (found != families.end() && found->second.type == "histogram") return base;
  }
  return name;
}

Families Parse(const std::string& text) {
  Families families;
  std::set<std::string> helped;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, kind, name;
    if (line.starts_with("#")) {
      words >> hash >> kind >> name;
      EXPECT_TRUE(IsName(name)) << line;
      if (kind == "HELP") {
        EXPECT_TRUE(helped.insert(name).second) << line;
      }
      if (kind != "TYPE") continue;
      EXPECT_TRUE(helped.contains(name)) << line;
      EXPECT_FALSE(families.contains(name)) << line;
      words >> families[name].type;
      continue;
    }
    const size_t brace = line.find('{'), space = line.rfind(' ');
    name = line.substr(0, std::min(brace, space));
    const std::string family_name = FamilyOf(families, name);
    EXPECT_TRUE(families.contains(family_name)) << line;
    Family& family = families[family_name];
    double value = 0;
    const std::string number = line.substr(space + 1);
    const auto read = std::from_chars(number.data(), number.data() + number.size(), value);
    EXPECT_TRUE(read.ec == std::errc() && read.ptr == number.data() + number.size()) << line;
    auto labels = brace == std::string::npos
                      ? std::map<std::string, std::string>()
                      : ParseLabels(line.substr(brace + 1, space - brace - 2));
    EXPECT_EQ(labels.contains("le"), name.ends_with("_bucket")) << line;
    if (labels.contains("le")) family.buckets.push_back(labels["le"]);
    for (const auto& [label, ignored] : labels) {
      if (label != "le") family.labels.insert(label);
    }
    EXPECT_TRUE(family.samples.emplace(line.substr(0, space), value).second) << line;
  }
  return families;
}

constexpr char kFirstToken[] =
    ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 80 160 640 2560";
constexpr char kToken[] = ".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 7.5 10 20 40 80";
constexpr char kRequest[] = ".3 .5 .8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680";

std::vector<double> Numbers(const std::string& text) {
  std::istringstream words(text);
  return {std::istream_iterator<double>(words), std::istream_iterator<double>()};
}

class Vocabulary : public testing::Test {
 protected:
  void SetUp() override {
    metrics_.HttpResponse("/v1/completions", 200);
    metrics_.Admitted({.prompt_tokens = 7, .n = 2, .max_tokens = 30});
    metrics_.FirstToken(0.02);
    metrics_.NextToken(0.3);
    metrics_.Done({.reason = "length",
                   .generation_tokens = 3,
                   .e2e_seconds = 4,
                   .queue_seconds = 1,
                   .prefill_seconds = 2,
                   .decode_seconds = 1});
    metrics_.Done({.reason = "cancelled", .failure = "cancelled", .generation_tokens = 1});
    metrics_.Aborted(ServingMetrics::Abort::kSlowClient);
    Scrape();
  }
  void Scrape() {
    EngineStats stats{.num_requests_running = 3,
                      .num_requests_waiting = 4,
                      .kv_cache_usage = 0.25,
                      .prefix_cache_queries = 50,
                      .prefix_cache_hits = 20,
                      .num_preemptions = 2,
                      .num_steps = 6,
                      .step_tokens = 300,
                      .model_flops = 3e12,
                      .model_bytes = 5e9,
                      .peak_flops_per_second = 1e12,
                      .peak_bytes_per_second = 2e10};
    stats.step_counts = {2, 3, 1};
    stats.expert_tokens = expert_tokens_;
    families_ = Parse(metrics_.Scrape(stats, {.ready = true, .seconds_since_step = 1.5},
                                      {.weight_version = 9},
                                      {.connections = 5, .in_flight = 2, .tls_expires = 77}));
  }
  void ExpectBuckets(const std::string& name, const std::string& bounds) {
    const Family& family = families_["cadre_" + name];
    EXPECT_EQ(family.type, "histogram") << name;
    ASSERT_FALSE(family.buckets.empty()) << name;
    EXPECT_EQ(family.buckets.back(), "+Inf") << name;
    std::vector<double> found;
    for (size_t i = 0; i + 1 < family.buckets.size(); ++i)
      found.push_back(std::stod(family.buckets[i]));
    EXPECT_EQ(found, Numbers(bounds)) << name;
    EXPECT_TRUE(family.labels.empty()) << name;
  }
  double Value(const std::string& sample) {
    for (const auto& [name, family] : families_) {
      auto found = family.samples.find(sample);
      if (found != family.samples.end()) return found->second;
    }
    ADD_FAILURE() << "there is no " << sample;
    return 0;
  }

  ServingMetrics metrics_;
  Families families_;
  std::vector<LayerExpertTokens> expert_tokens_ = {{.layer = 1, .tokens = {3, 0}},
                                                   {.layer = 3, .tokens = {1, 2}}};
};

TEST_F(Vocabulary, HistogramsHaveTheirBuckets) {
  ExpectBuckets("time_to_first_token_seconds", kFirstToken);
  ExpectBuckets("inter_token_latency_seconds", kToken);
  ExpectBuckets("request_time_per_output_token_seconds", kToken);
  for (const char* name :
       {"e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
        "request_decode_time_seconds", "request_inference_time_seconds"}) {
    ExpectBuckets(name, kRequest);
  }
  for (const char* name :
       {"iteration_tokens_total", "request_prompt_tokens", "request_generation_tokens",
        "request_params_n", "request_params_max_tokens"}) {
    EXPECT_EQ(families_[std::string("cadre_") + name].type, "histogram") << name;
  }
}

TEST_F(Vocabulary, NamesAndTypesAreAllThatThereIs) {
  const std::map<std::string, std::string> scalars = {
      {"num_requests_running", "gauge"},
      {"num_requests_waiting", "gauge"},
      {"kv_cache_usage_perc", "gauge"},
      {"prefix_cache_queries_total", "counter"},
      {"prefix_cache_hits_total", "counter"},
      {"num_preemptions_total", "counter"},
      {"prompt_tokens_total", "counter"},
      {"generation_tokens_total", "counter"},
      {"request_success_total", "counter"},
      {"request_failure_total", "counter"},
      {"request_aborted_total", "counter"},
      {"http_responses_total", "counter"},
      {"tls_handshake_failures_total", "counter"},
      {"engine_steps_total", "counter"},
      {"expert_tokens_total", "counter"},
      {"model_flops_total", "counter"},
      {"model_bytes_total", "counter"},
      {"peak_flops_per_second", "gauge"},
      {"peak_bytes_per_second", "gauge"},
      {"seconds_since_last_step", "gauge"},
      {"weight_version", "gauge"},
      {"draining", "gauge"},
      {"ready", "gauge"},
      {"http_connections", "gauge"},
      {"http_requests_in_flight", "gauge"},
      {"tls_certificate_expiry_timestamp_seconds", "gauge"}};
  for (const auto& [name, type] : scalars) {
    EXPECT_TRUE(families_.contains("cadre_" + name)) << name;
  }
  for (const auto& [name, family] : families_) {
    if (family.type == "histogram" || name.starts_with("process_")) continue;
    ASSERT_TRUE(name.starts_with("cadre_")) << name;
    auto known = scalars.find(name.substr(6));
    // What speculation and preemption count.
    const bool more =
        name == "cadre_recomputed_tokens_total" || name.starts_with("cadre_spec_decode_");
    ASSERT_TRUE(more || known != scalars.end()) << name;
    EXPECT_EQ(family.type, more ? "counter" : known->second) << name;
  }
  EXPECT_EQ(families_["cadre_request_success_total"].labels,
            std::set<std::string>{"finished_reason"});
  EXPECT_EQ(families_["cadre_request_failure_total"].labels, std::set<std::string>{"kind"});
  EXPECT_EQ(families_["cadre_request_aborted_total"].labels, std::set<std::string>{"reason"});
  EXPECT_EQ(families_["cadre_http_responses_total"].labels,
            (std::set<std::string>{"route", "status"}));
  EXPECT_EQ(families_["cadre_expert_tokens_total"].labels,
            (std::set<std::string>{"expert", "layer"}));
}

TEST_F(Vocabulary, ExpertsHaveTheirTokensAndNotTooManySeries) {
  EXPECT_EQ(Value("cadre_expert_tokens_total{expert=\"0\",layer=\"1\"}"), 3);
  EXPECT_EQ(Value("cadre_expert_tokens_total{expert=\"1\",layer=\"1\"}"), 0);
  EXPECT_EQ(Value("cadre_expert_tokens_total{expert=\"1\",layer=\"3\"}"), 2);
  expert_tokens_[0].tokens[1] = 7;
  Scrape();
  EXPECT_EQ(Value("cadre_expert_tokens_total{expert=\"1\",layer=\"1\"}"), 7);
  EXPECT_EQ(families_["cadre_expert_tokens_total"].samples.size(), 4u);
}

TEST(ExpertMetrics, AModelOfVeryManyExpertsHasItsLayersSummed) {
  ServingMetrics metrics;
  EngineStats stats;
  for (int layer = 0; layer < 70; ++layer) {
    stats.expert_tokens.push_back({layer, std::vector<int64_t>(256, layer == 5 ? 3 : 1)});
  }
  Families families = Parse(metrics.Scrape(stats, {}, {}, {}));
  const auto& samples = families["cadre_expert_tokens_total"].samples;
  EXPECT_EQ(samples.size(), 256u);
  EXPECT_EQ(samples.at("cadre_expert_tokens_total{expert=\"255\",layer=\"all\"}"), 72);
}

TEST_F(Vocabulary, ValuesAreWhatHappened) {
  const std::pair<const char*, double> expected[] = {
      {"cadre_request_success_total{finished_reason=\"length\"}", 1},
      {"cadre_request_success_total{finished_reason=\"stop\"}", 0},
      {"cadre_request_failure_total{kind=\"cancelled\"}", 1},
      {"cadre_request_failure_total{kind=\"timeout\"}", 0},
      {"cadre_request_failure_total{kind=\"grammar_limit\"}", 0},
      {"cadre_request_failure_total{kind=\"vocabulary\"}", 0},
      {"cadre_request_failure_total{kind=\"engine\"}", 0},
      {"cadre_request_aborted_total{reason=\"slow_client\"}", 1},
      {"cadre_generation_tokens_total", 4},
      {"cadre_prompt_tokens_total", 7},
      {"cadre_time_to_first_token_seconds_bucket{le=\"0.01\"}", 0},
      {"cadre_time_to_first_token_seconds_bucket{le=\"0.02\"}", 1},
      {"cadre_request_time_per_output_token_seconds_sum", 0.5},
      {"cadre_request_inference_time_seconds_sum", 3},
      {"cadre_request_decode_time_seconds_sum", 1},
      {"cadre_kv_cache_usage_perc", 0.25},
      {"cadre_prefix_cache_hits_total", 20},
      {"cadre_iteration_tokens_total_count", 6},
      {"cadre_seconds_since_last_step", 1.5},
      {"cadre_model_flops_total", 3e12},
      {"cadre_model_bytes_total", 5e9},
      {"cadre_peak_flops_per_second", 1e12},
      {"cadre_peak_bytes_per_second", 2e10},
      {"cadre_weight_version", 9},
      {"cadre_ready", 1},
      {"cadre_http_connections", 5},
      {"cadre_http_requests_in_flight", 2},
      {"cadre_tls_certificate_expiry_timestamp_seconds", 77}};
  for (const auto& [sample, value] : expected) EXPECT_DOUBLE_EQ(Value(sample), value) << sample;
  EXPECT_GT(Value("process_resident_memory_bytes"), 1e6);
  EXPECT_GT(Value("process_open_fds"), 2);
  EXPECT_GE(Value("process_max_fds"), Value("process_open_fds"));
  Scrape();  // what the engine counts is not counted twice
  EXPECT_EQ(Value("cadre_iteration_tokens_total_count"), 6);
  EXPECT_EQ(Value("cadre_num_preemptions_total"), 2);
}

}  // namespace
}  // namespace cadre
