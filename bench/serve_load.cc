// Load for a running `cadre serve` (or any server of /v1/completions), open loop: Poisson arrivals
// or a trace's, scaled in rate and length, and what came of them.
//
//   build/release/bench_serve_load --url http://127.0.0.1:8000 --rate 8 --duration 20
//   build/release/bench_serve_load --url ... --trace azure.csv --rate-scale 4 --length-scale 0.25
//   build/release/bench_serve_load --url ... --trace azure.csv --requests 200 --search --json
//
// Prompts are token ids below --vocabulary, answers are greedy and of exactly the planned length
// (ignore_eos). --search first measures the unloaded server, takes --slo-factor times its median
// time to the first token and between tokens for the SLO, and finds the highest rate whose goodput
// is at least --goodput; a rate's run ends as soon as it cannot be. Exit code: 0 where every answer
// of a plain run was whole, 3 where not, 2 for wrong usage.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>

#include "bench/serve_load_search.h"

namespace cadre::bench {
namespace {

struct Flags {
  std::string url, trace;
  PlanOptions plan;
  ClientOptions client;
  Slo slo;
  SearchOptions search;
  bool searches = false, json = false;
  double slo_factor = 3;
  double slo_ttft_ms = 0, slo_itl_ms = 0;
  size_t unloaded_requests = 20;
};

void AddFlags(CLI::App& app, Flags* f) {
  app.add_option("--url", f->url, "http://HOST:PORT of the server")->required();
  app.add_option("--model", f->client.model, "Name that requests give");
  app.add_option("--api-key", f->client.api_keys, "Key to send (may be repeated)");
  app.add_option("--key-weight", f->plan.key_weights,
                 "Share of the requests of each --api-key, in their order [all alike]");
  app.add_option("--trace", f->trace, "Azure .csv or Mooncake .jsonl; absent: Poisson arrivals");
  app.add_option("--rate", f->plan.rate, "Requests a second, Poisson; absent: the trace's times");
  app.add_option("--rate-scale", f->plan.rate_scale, "The trace's rate times this [1]");
  app.add_option("--length-scale", f->plan.length_scale, "The trace's lengths times this [1]");
  app.add_option("--prompt-tokens", f->plan.prompt_tokens, "Without a trace [256]");
  app.add_option("--output-tokens", f->plan.output_tokens, "Without a trace [64]");
  app.add_option("--max-prompt-tokens", f->plan.max_prompt_tokens, "Longer prompts are cut");
  app.add_option("--max-output-tokens", f->plan.max_output_tokens, "Longer answers are cut");
  app.add_option("--skip", f->plan.skip, "Requests of the trace before the first one");
  app.add_option("--requests", f->plan.requests, "Bound of the run");
  app.add_option("--duration", f->plan.duration, "Bound of the run, seconds of arrivals");
  app.add_option("--seed", f->plan.seed, "Of arrivals, keys and prompts [0]");
  app.add_option("--vocabulary", f->client.vocabulary, "Prompt token ids are below this [256]")
      ->check(CLI::Range(1, 1 << 24));
  app.add_flag("--token-ids", f->client.names_tokens,
               "Ask for the ids of tokens, so that one whose text is held back until the next is a "
               "gap of its own (random models have many)");
  app.add_option("--timeout", f->client.timeout_s, "Seconds for one request [120]");
  app.add_option("--slo-ttft", f->slo_ttft_ms, "SLO of the first token, ms; 0: none");
  app.add_option("--slo-itl", f->slo_itl_ms, "SLO between tokens, ms; 0: none");
  app.add_option("--slo-gap-share", f->slo.gap_share,
                 "Share of an answer's gaps that must be within --slo-itl [0.99]")
      ->check(CLI::Range(0.0, 1.0));
  app.add_flag("--search", f->searches, "Find the highest rate within the SLO");
  app.add_option("--slo-factor", f->slo_factor, "With --search: times the unloaded medians [3]");
  app.add_option("--unloaded-requests", f->unloaded_requests,
                 "With --search: sent one at a time first [20]")
      ->check(CLI::Range(1, 100000));
  app.add_option("--search-start", f->search.start, "First rate that is tried [1]")
      ->check(CLI::PositiveNumber);
  app.add_option("--search-lowest", f->search.lowest, "No rate below this is tried [any]");
  app.add_option("--search-steps", f->search.steps, "Bisections [5]")->check(CLI::Range(0, 30));
  app.add_option("--goodput", f->search.goodput, "Share of good requests that is enough [0.95]")
      ->check(CLI::Range(0.0, 1.0));
  app.add_flag("--json", f->json, "One JSON document on standard output");
}

// What rate a plan of the trace's own times means depends on them, so a search scales those.
absl::StatusOr<LoadPlan> PlanAtRate(PlanOptions options, const Trace& trace, double rate) {
  if (trace.requests.empty() || options.rate > 0) {
    options.rate = rate;
    return MakePlan(options, trace);
  }
  PlanOptions own = options;
  own.rate_scale = 1;
  CADRE_ASSIGN_OR_RETURN(const LoadPlan plan, MakePlan(own, trace));
  const double seconds = plan.requests.back().at;
  if (seconds <= 0) return InvalidArgument("the trace's requests come all at once");
  options.rate_scale = rate * seconds / static_cast<double>(plan.requests.size());
  return MakePlan(options, trace);
}

absl::Status Search(const Flags& flags, const Trace& trace) {
  CADRE_ASSIGN_OR_RETURN(LoadPlan sample, PlanAtRate(flags.plan, trace, flags.search.start));
  Slo slo = flags.slo;
  nlohmann::json output;
  if (slo.ttft == 0 || slo.itl == 0) {
    const LoadResult unloaded = RunUnloaded(sample, flags.client, flags.unloaded_requests);
    const Report report = MakeReport(unloaded, {});
    if (report.whole < report.requests) {
      return Unavailable("the unloaded server failed {} of {} requests: {}",
                         report.requests - report.whole, report.requests,
                         report.errors.begin()->first);
    }
    const Slo measured = SloFrom(report, flags.slo_factor, slo.gap_share);
    if (slo.ttft == 0) slo.ttft = measured.ttft;
    if (slo.itl == 0) slo.itl = measured.itl;
    output["unloaded"] = ToJson(report);
    if (!flags.json) fmt::print("unloaded:\n{}", ToText(report, {}));
    if (flags.json) {
      fmt::print(stderr, "bounds: first token {:.0f} ms, gaps {:.1f} ms\n", slo.ttft * 1e3,
                 slo.itl * 1e3);
    }
  }
  absl::Status failed;
  uint64_t run = 0;
  auto goodput_at = [&](double rate) {
    auto plan = PlanAtRate(flags.plan, trace, rate);
    failed.Update(plan.status());
    if (!plan.ok()) return 0.0;
    plan->salt = flags.plan.seed + ++run * 1000003;  // prompts that no run before has cached
    const Report report = MeasureRate(*plan, flags.client, slo, flags.search.goodput);
    output["runs"].push_back(ToJson(report));
    output["runs"].back()["rate"] = rate;
    if (!flags.json) fmt::print("\nrate {:.3f}:\n{}", rate, ToText(report, slo));
    std::fflush(stdout);
    if (flags.json) {
      fmt::print(stderr,
                 "rate {:.3f}: {} of {} good, {} late, {} slow in {:.0f} s; first token {:.0f} and "
                 "{:.0f} ms, gaps {:.1f} and {:.1f} ms (median and 99 %)\n",
                 rate, report.good, report.requests, report.late, report.slow, report.seconds,
                 report.ttft.p50 * 1e3, report.ttft.p99 * 1e3, report.itl.p50 * 1e3,
                 report.itl.p99 * 1e3);
    }
    return report.goodput();
  };
  const SearchResult found = FindHighestRate(flags.search, goodput_at);
  CADRE_RETURN_IF_ERROR(failed);
  output["slo"] = {
      {"ttft_ms", slo.ttft * 1e3}, {"itl_ms", slo.itl * 1e3}, {"gap_share", slo.gap_share}};
  output["highest_rate"] = found.rate;
  if (flags.json) {
    std::cout << output.dump(1) << "\n";
  } else {
    fmt::print("\nhighest rate with goodput >= {:.0f} %: {:.3f} requests a second\n",
               flags.search.goodput * 100, found.rate);
  }
  return absl::OkStatus();
}

// Whether every answer was whole.
absl::StatusOr<bool> RunOnce(const Flags& flags, const Trace& trace) {
  CADRE_ASSIGN_OR_RETURN(const LoadPlan plan, MakePlan(flags.plan, trace));
  const LoadResult result = RunPlan(plan, flags.client);
  const Report report = MakeReport(result, flags.slo);
  const size_t keys = flags.plan.key_weights.size();
  const auto by_key = keys > 1 ? ReportsByKey(result, flags.slo, keys) : std::vector<Report>();
  if (flags.json) {
    nlohmann::json output = ToJson(report);
    for (const Report& own : by_key) output["keys"].push_back(ToJson(own));
    std::cout << output.dump(1) << "\n";
  } else {
    fmt::print("{}", ToText(report, flags.slo));
    for (size_t key = 0; key < by_key.size(); ++key) {
      fmt::print("\nkey {}:\n{}", key, ToText(by_key[key], flags.slo));
    }
  }
  return report.whole == report.requests;
}

absl::StatusOr<bool> Run(Flags flags) {
  CADRE_ASSIGN_OR_RETURN(flags.client.target, ParseUrl(flags.url));
  flags.slo.ttft = flags.slo_ttft_ms * 1e-3;
  flags.slo.itl = flags.slo_itl_ms * 1e-3;
  const size_t keys = std::max<size_t>(flags.client.api_keys.size(), 1);
  if (flags.plan.key_weights.size() <= 1) flags.plan.key_weights.assign(keys, 1);
  if (flags.plan.key_weights.size() != keys) {
    return InvalidArgument("--key-weight: {} given for {} keys", flags.plan.key_weights.size(),
                           keys);
  }
  Trace trace;
  if (!flags.trace.empty()) {
    CADRE_ASSIGN_OR_RETURN(trace, LoadTrace(flags.trace));
    if (trace.requests.empty()) return InvalidArgument("{}: no request in it", flags.trace);
  }
  if (!flags.searches) return RunOnce(flags, trace);
  CADRE_RETURN_IF_ERROR(Search(flags, trace));
  return true;
}

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) {
  CLI::App app("Open-loop load for a server of /v1/completions");
  cadre::bench::Flags flags;
  cadre::bench::AddFlags(app, &flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const auto whole = cadre::bench::Run(flags);
  if (!whole.ok()) {
    fmt::print(stderr, "error: {}\n", cadre::Message(whole.status()));
    return 2;
  }
  return *whole ? 0 : 3;
}
