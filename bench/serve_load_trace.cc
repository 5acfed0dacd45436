#include "bench/serve_load_trace.h"

#include <simdjson.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <optional>

#include "core/file.h"

namespace cadre::bench {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 24;
constexpr int64_t kMooncakeBlock = 512;
constexpr std::string_view kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";

// The next line without its end; nullopt behind the last.
std::optional<std::string_view> NextLine(std::string_view* text) {
  if (text->empty()) return std::nullopt;
  const size_t end = text->find('\n');
  std::string_view line = text->substr(0, end);
  *text = end == std::string_view::npos ? std::string_view() : text->substr(end + 1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

template <typename T>
bool Number(std::string_view text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

bool InBounds(int64_t tokens) { return tokens >= 1 && tokens <= kMaxTokens; }

// Seconds since 1970 of "2023-11-16 18:15:46.6805900".
std::optional<double> Seconds(std::string_view text) {
  int year = 0;
  unsigned month = 0, day = 0;
  int hour = 0, minute = 0;
  double second = 0;
  const bool shaped = text.size() >= 19 && text[4] == '-' && text[7] == '-' && text[10] == ' ' &&
                      text[13] == ':' && text[16] == ':';
  if (!shaped || !Number(text.substr(0, 4), &year) || !Number(text.substr(5, 2), &month) ||
      !Number(text.substr(8, 2), &day) || !Number(text.substr(11, 2), &hour) ||
      !Number(text.substr(14, 2), &minute) || !Number(text.substr(17), &second)) {
    return std::nullopt;
  }
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month),
                                         std::chrono::day(day)};
  const bool valid = date.ok() && hour >= 0 && hour < 24 && minute >= 0 && minute < 60 &&
                     second >= 0 && second < 61;
  if (!valid) return std::nullopt;
  const auto days = std::chrono::sys_days(date).time_since_epoch().count();
  return static_cast<double>(days) * 86400 + hour * 3600 + minute * 60 + second;
}

// Traces are written where requests end up, not always in the order they came.
void StartAtZero(Trace* trace) {
  std::ranges::stable_sort(trace->requests, {}, &TraceRequest::at);
  if (trace->requests.empty()) return;
  const double first = trace->requests.front().at;
  for (TraceRequest& request : trace->requests) request.at -= first;
}

absl::Status CheckLine(const TraceRequest& request, const std::string& name, int line) {
  if (InBounds(request.prompt_tokens) && InBounds(request.output_tokens)) return absl::OkStatus();
  return InvalidArgument("{}:{}: a prompt of {} tokens and an answer of {}, allowed are 1 to {}",
                         name, line, request.prompt_tokens, request.output_tokens, kMaxTokens);
}

absl::StatusOr<TraceRequest> MooncakeLine(simdjson::dom::parser& parser, std::string_view text,
                                          const std::string& name, int line) {
  TraceRequest request;
  simdjson::dom::element object;
  simdjson::dom::array ids;
  double milliseconds = 0;
  if (parser.parse(text.data(), text.size()).get(object) || object["timestamp"].get(milliseconds) ||
      object["input_length"].get(request.prompt_tokens) ||
      object["output_length"].get(request.output_tokens) || object["hash_ids"].get(ids)) {
    return InvalidArgument(
        "{}:{}: no JSON object with timestamp, input_length, output_length and hash_ids", name,
        line);
  }
  request.at = milliseconds * 1e-3;
  for (simdjson::dom::element element : ids) {
    int64_t id = 0;
    if (element.get(id)) return InvalidArgument("{}:{}: a hash id is no whole number", name, line);
    request.blocks.push_back(id);
  }
  CADRE_RETURN_IF_ERROR(CheckLine(request, name, line));
  const int64_t blocks = (request.prompt_tokens + kMooncakeBlock - 1) / kMooncakeBlock;
  if (static_cast<int64_t>(request.blocks.size()) != blocks) {
    return InvalidArgument("{}:{}: {} hash_ids for {} tokens, {} are needed", name, line,
                           request.blocks.size(), request.prompt_tokens, blocks);
  }
  return request;
}

}  // namespace

absl::StatusOr<Trace> ParseAzureTrace(std::string_view text, const std::string& name) {
  Trace trace;
  if (NextLine(&text) != kAzureHeader) {
    return InvalidArgument("{}:1: the first line must be {}", name, kAzureHeader);
  }
  int number = 1;
  while (auto line = NextLine(&text)) {
    ++number;
    if (line->empty()) continue;
    const size_t one = line->find(','), two = line->find(',', one + 1);
    TraceRequest request;
    const auto at = one == std::string_view::npos ? std::nullopt : Seconds(line->substr(0, one));
    if (!at || two == std::string_view::npos ||
        !Number(line->substr(one + 1, two - one - 1), &request.prompt_tokens) ||
        !Number(line->substr(two + 1), &request.output_tokens)) {
      return InvalidArgument("{}:{}: not a time and two whole numbers", name, number);
    }
    request.at = *at;
    CADRE_RETURN_IF_ERROR(CheckLine(request, name, number));
    trace.requests.push_back(std::move(request));
  }
  StartAtZero(&trace);
  return trace;
}

absl::StatusOr<Trace> ParseMooncakeTrace(std::string_view text, const std::string& name) {
  Trace trace{.block_tokens = kMooncakeBlock};
  simdjson::dom::parser parser;
  int number = 0;
  while (auto line = NextLine(&text)) {
    ++number;
    if (line->empty()) continue;
    CADRE_ASSIGN_OR_RETURN(TraceRequest request, MooncakeLine(parser, *line, name, number));
    trace.requests.push_back(std::move(request));
  }
  StartAtZero(&trace);
  return trace;
}

absl::StatusOr<Trace> LoadTrace(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  if (path.ends_with(".csv")) return ParseAzureTrace(text, path);
  if (path.ends_with(".jsonl")) return ParseMooncakeTrace(text, path);
  return InvalidArgument("{}: a trace ends in .csv (Azure) or .jsonl (Mooncake)", path);
}

}  // namespace cadre::bench
