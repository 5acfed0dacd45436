#include "bench/serve_load_report.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cadre::bench {
namespace {

nlohmann::json Milliseconds(const Percentiles& p) {
  auto value = [](double seconds) {
    return std::isnan(seconds) ? nlohmann::json() : nlohmann::json(seconds * 1e3);
  };
  return {{"p50", value(p.p50)}, {"p90", value(p.p90)}, {"p99", value(p.p99)}};
}

double PerSecond(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

std::string Line(const char* name, const Percentiles& p) {
  return fmt::format("{:<12}p50 {:>9.2f}   p90 {:>9.2f}   p99 {:>9.2f} ms\n", name, p.p50 * 1e3,
                     p.p90 * 1e3, p.p99 * 1e3);
}

std::string Bound(double seconds) {
  return seconds > 0 ? fmt::format("{:.2f} ms", seconds * 1e3) : "any";
}

}  // namespace

double Percentile(std::vector<double>& values, double share) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double rank = std::ceil(share * static_cast<double>(values.size()));
  const auto index =
      static_cast<int64_t>(std::clamp(rank, 1.0, static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + (index - 1), values.end());
  return values[static_cast<size_t>(index - 1)];
}

Percentiles PercentilesOf(std::vector<double> values) {
  return {Percentile(values, 0.5), Percentile(values, 0.9), Percentile(values, 0.99)};
}

bool Late(const Outcome& outcome, const Slo& slo) {
  return slo.ttft > 0 && outcome.ttft() > slo.ttft;
}

bool Slow(const Outcome& outcome, const Slo& slo) {
  if (slo.itl <= 0 || outcome.gaps.empty()) return false;
  std::vector<double> gaps(outcome.gaps.begin(), outcome.gaps.end());
  return Percentile(gaps, slo.gap_share) > slo.itl;
}

bool Good(const Outcome& outcome, const Slo& slo) {
  return outcome.ok() && !Late(outcome, slo) && !Slow(outcome, slo);
}

Report MakeReport(const LoadResult& result, const Slo& slo) {
  Report report{.requests = result.outcomes.size(), .seconds = result.seconds};
  std::vector<double> ttft, itl, e2e, lag;
  double last = 0;
  size_t sent = 0;
  for (const Outcome& outcome : result.outcomes) {
    if (outcome.error == kBrokenOff) {
      ++report.errors[outcome.error];
      continue;
    }
    last = std::max(last, outcome.scheduled);
    ++sent;
    lag.push_back(outcome.sent - outcome.scheduled);
    report.good += Good(outcome, slo);
    if (!outcome.ok()) {
      ++report.errors[outcome.error];
      continue;
    }
    ++report.whole;
    report.late += Late(outcome, slo);
    report.slow += Slow(outcome, slo);
    report.prompt_tokens += outcome.prompt_tokens;
    report.output_tokens += outcome.output_tokens;
    report.cached_tokens += outcome.cached_tokens;
    ttft.push_back(outcome.ttft());
    e2e.push_back(outcome.e2e());
    itl.insert(itl.end(), outcome.gaps.begin(), outcome.gaps.end());
  }
  report.offered_rate = PerSecond(static_cast<double>(sent), last);
  report.ttft = PercentilesOf(std::move(ttft));
  report.itl = PercentilesOf(std::move(itl));
  report.e2e = PercentilesOf(std::move(e2e));
  report.lag = PercentilesOf(std::move(lag));
  return report;
}

std::vector<Report> ReportsByKey(const LoadResult& result, const Slo& slo, size_t keys) {
  std::vector<Report> reports;
  for (size_t key = 0; key < keys; ++key) {
    LoadResult own{.seconds = result.seconds};
    std::ranges::copy_if(result.outcomes, std::back_inserter(own.outcomes),
                         [key](const Outcome& outcome) { return outcome.key == key; });
    reports.push_back(MakeReport(own, slo));
  }
  return reports;
}

nlohmann::json ToJson(const Report& report) {
  return {{"requests", report.requests},
          {"whole", report.whole},
          {"good", report.good},
          {"late", report.late},
          {"slow", report.slow},
          {"goodput", report.goodput()},
          {"seconds", report.seconds},
          {"offered_rate", report.offered_rate},
          {"requests_per_second", PerSecond(static_cast<double>(report.whole), report.seconds)},
          {"good_requests_per_second", PerSecond(static_cast<double>(report.good), report.seconds)},
          {"prompt_tokens_per_second",
           PerSecond(static_cast<double>(report.prompt_tokens), report.seconds)},
          {"output_tokens_per_second",
           PerSecond(static_cast<double>(report.output_tokens), report.seconds)},
          {"prompt_tokens", report.prompt_tokens},
          {"output_tokens", report.output_tokens},
          {"cached_tokens", report.cached_tokens},
          {"ttft_ms", Milliseconds(report.ttft)},
          {"itl_ms", Milliseconds(report.itl)},
          {"e2e_ms", Milliseconds(report.e2e)},
          {"client_lag_ms", Milliseconds(report.lag)},
          {"errors", report.errors}};
}

std::string ToText(const Report& report, const Slo& slo) {
  const double seconds = report.seconds;
  std::string text = fmt::format(
      "{} requests in {:.2f} s, {:.2f} a second offered, {:.2f} a second answered whole\n"
      "{:.1f} prompt and {:.1f} output tokens a second, {} prompt tokens from the prefix cache\n",
      report.requests, seconds, report.offered_rate,
      PerSecond(static_cast<double>(report.whole), seconds),
      PerSecond(static_cast<double>(report.prompt_tokens), seconds),
      PerSecond(static_cast<double>(report.output_tokens), seconds), report.cached_tokens);
  text += fmt::format(
      "goodput {:.1f} % (first token within {}: {} not; {:.0f} % of the gaps within {}: {} not)\n",
      report.goodput() * 100, Bound(slo.ttft), report.late, slo.gap_share * 100, Bound(slo.itl),
      report.slow);
  text += Line("first token", report.ttft) + Line("gap", report.itl) + Line("whole", report.e2e) +
          Line("client lag", report.lag);
  for (const auto& [kind, count] : report.errors) {
    text += fmt::format("{} failed: {}\n", count, kind);
  }
  return text;
}

}  // namespace cadre::bench
