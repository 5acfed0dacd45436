#include "serving/http/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <mutex>
#include <system_error>

#include "core/process_memory.h"

namespace cadre {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets kFirstTokenSeconds = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                    1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const Buckets kTokenSeconds = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                               .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
const Buckets kRequestSeconds = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const Buckets kTokens = {1,   2,    5,    10,   20,    50,    100,   200,
                         500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
const Buckets kStepTokens(kStepTokenBounds.begin(), kStepTokenBounds.end());
const Buckets kChoices = {1, 2, 5, 10, 20, 50, 100};

// Of cadre_expert_tokens_total; a model with more of them has its layers summed.
constexpr size_t kMaxExpertSeries = 16384;

constexpr const char* kFailures[] = {"cancelled", "timeout", "grammar_limit", "vocabulary",
                                     "engine"};
constexpr const char* kAborts[] = {"client_gone", "timeout", "slow_client"};

int64_t CountOpenFiles() {
  std::error_code error;
  const std::filesystem::directory_iterator files("/proc/self/fd", error);
  return error ? 0 : std::distance(begin(files), end(files));
}

int64_t MaxOpenFiles() {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<int64_t>(limit.rlim_cur);
}

}  // namespace

struct ServingMetrics::Families {
  prometheus::Registry registry;
  std::mutex scrape;  // one scrape at a time brings the engine's counters up to date

  prometheus::Histogram& AddHistogram(const char* name, const char* help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, buckets);
  }
  prometheus::Counter& AddCounter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
  }
  prometheus::Gauge& AddGauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
  }

  prometheus::Family<prometheus::Counter>& responses =
      prometheus::BuildCounter()
          .Name("cadre_http_responses_total")
          .Help("HTTP responses by route and status")
          .Register(registry);
  prometheus::Family<prometheus::Counter>& success = prometheus::BuildCounter()
                                                         .Name("cadre_request_success_total")
                                                         .Help("Finished sequences by reason")
                                                         .Register(registry);
  prometheus::Family<prometheus::Counter>& failure =
      prometheus::BuildCounter()
          .Name("cadre_request_failure_total")
          .Help("Sequences that were cancelled or failed, by kind")
          .Register(registry);
  prometheus::Family<prometheus::Counter>& aborted =
      prometheus::BuildCounter()
          .Name("cadre_request_aborted_total")
          .Help("Answers that the front broke off, by reason")
          .Register(registry);
  prometheus::Family<prometheus::Counter>& expert_tokens =
      prometheus::BuildCounter()
          .Name("cadre_expert_tokens_total")
          .Help("Tokens that routers gave to each expert; a token counts for each of its experts")
          .Register(registry);
  prometheus::Counter& handshake_failures =
      AddCounter("cadre_tls_handshake_failures_total", "Clients that no TLS came about with");
  prometheus::Counter& prompt_tokens =
      AddCounter("cadre_prompt_tokens_total", "Prompt tokens of admitted requests");
  prometheus::Counter& generation_tokens =
      AddCounter("cadre_generation_tokens_total", "Generated tokens");
  prometheus::Counter& prefix_queries =
      AddCounter("cadre_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache");
  prometheus::Counter& prefix_hits =
      AddCounter("cadre_prefix_cache_hits_total", "Prompt tokens found in the prefix cache");
  prometheus::Counter& preemptions =
      AddCounter("cadre_num_preemptions_total", "Sequences preempted for lack of KV blocks");
  prometheus::Counter& recomputed =
      AddCounter("cadre_recomputed_tokens_total", "Tokens computed again after preemptions");
  prometheus::Counter& drafts = AddCounter("cadre_spec_decode_drafts_total",
                                           "Sequences times steps in which tokens were guessed");
  prometheus::Counter& draft_tokens =
      AddCounter("cadre_spec_decode_draft_tokens_total", "Tokens guessed by speculation");
  prometheus::Counter& accepted_tokens =
      AddCounter("cadre_spec_decode_accepted_tokens_total", "Of these, those that were right");
  prometheus::Counter& steps = AddCounter("cadre_engine_steps_total", "Engine steps");
  prometheus::Counter& model_flops = AddCounter(
      "cadre_model_flops_total", "Floating-point operations of the model in engine steps");
  prometheus::Counter& model_bytes = AddCounter(
      "cadre_model_bytes_total", "Bytes of weights, keys and values that engine steps read");
  prometheus::Gauge& peak_flops =
      AddGauge("cadre_peak_flops_per_second",
               "What products of the model's matrices reached at the start; 0: not measured");
  prometheus::Gauge& peak_bytes = AddGauge(
      "cadre_peak_bytes_per_second", "How fast weights were read at the start; 0: not measured");
  prometheus::Gauge& running =
      AddGauge("cadre_num_requests_running", "Sequences in the running batch");
  prometheus::Gauge& waiting =
      AddGauge("cadre_num_requests_waiting", "Sequences waiting for admission");
  prometheus::Gauge& kv_usage =
      AddGauge("cadre_kv_cache_usage_perc", "Used share of the KV cache, 0 to 1");
  prometheus::Gauge& step_age =
      AddGauge("cadre_seconds_since_last_step", "Seconds since the last engine step");
  prometheus::Gauge& weight_version =
      AddGauge("cadre_weight_version", "Version of the loaded weights");
  prometheus::Gauge& draining =
      AddGauge("cadre_draining", "1 while the server finishes and takes nothing new");
  prometheus::Gauge& ready = AddGauge("cadre_ready", "1 while /ready says 200");
  prometheus::Gauge& connections = AddGauge("cadre_http_connections", "Open connections");
  prometheus::Gauge& in_flight =
      AddGauge("cadre_http_requests_in_flight", "Completion requests being read or answered");
  prometheus::Gauge& tls_expiry =
      AddGauge("cadre_tls_certificate_expiry_timestamp_seconds",
               "When the certificate ends, in seconds since 1970; 0: no TLS");
  prometheus::Gauge& resident =
      AddGauge("process_resident_memory_bytes", "Resident memory of the process");
  prometheus::Gauge& open_files = AddGauge("process_open_fds", "Open files of the process");
  prometheus::Gauge& max_files = AddGauge("process_max_fds", "The limit of open files");
  prometheus::Histogram& first_token =
      AddHistogram("cadre_time_to_first_token_seconds",
                   "From the request's header to its first token", kFirstTokenSeconds);
  prometheus::Histogram& inter_token = AddHistogram(
      "cadre_inter_token_latency_seconds", "Between two tokens of a sequence", kTokenSeconds);
  prometheus::Histogram& per_token =
      AddHistogram("cadre_request_time_per_output_token_seconds",
                   "Mean time per token after the first, per sequence", kTokenSeconds);
  prometheus::Histogram& e2e = AddHistogram(
      "cadre_e2e_request_latency_seconds", "From the request's header to its end", kRequestSeconds);
  prometheus::Histogram& queue =
      AddHistogram("cadre_request_queue_time_seconds", "From the engine's queue to the first step",
                   kRequestSeconds);
  prometheus::Histogram& prefill =
      AddHistogram("cadre_request_prefill_time_seconds", "From the first step to the first token",
                   kRequestSeconds);
  prometheus::Histogram& decode = AddHistogram("cadre_request_decode_time_seconds",
                                               "From the first token to the last", kRequestSeconds);
  prometheus::Histogram& inference =
      AddHistogram("cadre_request_inference_time_seconds", "From the first step to the last token",
                   kRequestSeconds);
  prometheus::Histogram& request_prompt =
      AddHistogram("cadre_request_prompt_tokens", "Prompt tokens per request", kTokens);
  prometheus::Histogram& request_generation =
      AddHistogram("cadre_request_generation_tokens", "Generated tokens per sequence", kTokens);
  prometheus::Histogram& iteration =
      AddHistogram("cadre_iteration_tokens_total", "Tokens computed per engine step", kStepTokens);
  EngineStats scraped;  // what of `iteration` was added so far
  prometheus::Histogram& params_n =
      AddHistogram("cadre_request_params_n", "The requests' n", kChoices);
  prometheus::Histogram& params_max =
      AddHistogram("cadre_request_params_max_tokens", "The requests' max_tokens", kTokens);
};

// A label's values are there from the start: a counter that begins to exist at 1 has no rate.
ServingMetrics::ServingMetrics() : families_(std::make_unique<Families>()) {
  for (const char* reason : {"stop", "length"})
    families_->success.Add({{"finished_reason", reason}});
  for (const char* kind : kFailures) families_->failure.Add({{"kind", kind}});
  for (const char* reason : kAborts) families_->aborted.Add({{"reason", reason}});
}
ServingMetrics::~ServingMetrics() = default;

void ServingMetrics::HttpResponse(std::string_view route, int status) {
  families_->responses.Add({{"route", std::string(route)}, {"status", std::to_string(status)}})
      .Increment();
}

void ServingMetrics::Aborted(Abort reason) {
  families_->aborted.Add({{"reason", kAborts[static_cast<int>(reason)]}}).Increment();
}

void ServingMetrics::HandshakeFailed() { families_->handshake_failures.Increment(); }

void ServingMetrics::Admitted(const Request& request) {
  families_->prompt_tokens.Increment(request.prompt_tokens);
  families_->request_prompt.Observe(request.prompt_tokens);
  families_->params_n.Observe(request.n);
  families_->params_max.Observe(request.max_tokens);
}

void ServingMetrics::FirstToken(double seconds) { families_->first_token.Observe(seconds); }

void ServingMetrics::NextToken(double seconds) { families_->inter_token.Observe(seconds); }

void ServingMetrics::Done(const Finished& finished) {
  if (finished.failure.empty()) {
    families_->success.Add({{"finished_reason", std::string(finished.reason)}}).Increment();
  } else {
    families_->failure.Add({{"kind", std::string(finished.failure)}}).Increment();
  }
  families_->generation_tokens.Increment(finished.generation_tokens);
  families_->request_generation.Observe(finished.generation_tokens);
  families_->e2e.Observe(finished.e2e_seconds);
  families_->queue.Observe(finished.queue_seconds);
  families_->prefill.Observe(finished.prefill_seconds);
  families_->decode.Observe(finished.decode_seconds);
  families_->inference.Observe(finished.prefill_seconds + finished.decode_seconds);
  if (finished.generation_tokens > 1) {
    families_->per_token.Observe(finished.decode_seconds / (finished.generation_tokens - 1));
  }
}

namespace {

void Raise(prometheus::Counter& counter, double to) {
  const double added = to - counter.Value();
  if (added > 0) counter.Increment(added);
}

void RaiseExperts(prometheus::Family<prometheus::Counter>& family,
                  const std::vector<LayerExpertTokens>& layers) {
  size_t series = 0;
  for (const LayerExpertTokens& layer : layers) series += layer.tokens.size();
  std::map<std::pair<std::string, size_t>, int64_t> tokens;
  for (const LayerExpertTokens& layer : layers) {
    const std::string name = series > kMaxExpertSeries ? "all" : std::to_string(layer.layer);
    for (size_t e = 0; e < layer.tokens.size(); ++e) tokens[{name, e}] += layer.tokens[e];
  }
  for (const auto& [key, count] : tokens) {
    Raise(family.Add({{"layer", key.first}, {"expert", std::to_string(key.second)}}),
          static_cast<double>(count));
  }
}

}  // namespace

std::string ServingMetrics::Scrape(const EngineStats& stats, const EngineHealth& health,
                                   const ModelInfo& info, const Server& server) {
  Families& f = *families_;
  std::lock_guard lock(f.scrape);
  Raise(f.prefix_queries, static_cast<double>(stats.prefix_cache_queries));
  Raise(f.prefix_hits, static_cast<double>(stats.prefix_cache_hits));
  Raise(f.preemptions, static_cast<double>(stats.num_preemptions));
  Raise(f.recomputed, static_cast<double>(stats.recomputed_tokens));
  Raise(f.drafts, static_cast<double>(stats.spec_decode_drafts));
  Raise(f.draft_tokens, static_cast<double>(stats.spec_decode_draft_tokens));
  Raise(f.accepted_tokens, static_cast<double>(stats.spec_decode_accepted_tokens));
  Raise(f.steps, static_cast<double>(stats.num_steps));
  Raise(f.model_flops, stats.model_flops);
  Raise(f.model_bytes, stats.model_bytes);
  RaiseExperts(f.expert_tokens, stats.expert_tokens);
  std::vector<double> steps;
  for (size_t i = 0; i < stats.step_counts.size(); ++i) {
    steps.push_back(static_cast<double>(stats.step_counts[i] - f.scraped.step_counts[i]));
  }
  f.iteration.ObserveMultiple(steps,
                              static_cast<double>(stats.step_tokens - f.scraped.step_tokens));
  f.scraped = stats;
  f.peak_flops.Set(stats.peak_flops_per_second);
  f.peak_bytes.Set(stats.peak_bytes_per_second);
  f.running.Set(stats.num_requests_running);
  f.waiting.Set(stats.num_requests_waiting);
  f.kv_usage.Set(stats.kv_cache_usage);
  f.step_age.Set(health.seconds_since_step);
  f.weight_version.Set(static_cast<double>(info.weight_version));
  f.draining.Set(server.draining ? 1 : 0);
  f.ready.Set(health.ready && !server.draining ? 1 : 0);
  f.connections.Set(server.connections);
  f.in_flight.Set(server.in_flight);
  f.tls_expiry.Set(static_cast<double>(server.tls_expires));
  f.resident.Set(static_cast<double>(ReadResidentMemory().now));
  f.open_files.Set(static_cast<double>(CountOpenFiles()));
  f.max_files.Set(static_cast<double>(MaxOpenFiles()));
  return prometheus::TextSerializer().Serialize(f.registry.Collect());
}

}  // namespace cadre
