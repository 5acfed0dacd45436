#include "core/trace.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/file.h"

namespace cadre {
namespace {

constexpr size_t kFlushBytes = 64 << 10;

int64_t SteadyNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Names may come from files; what is no UTF-8 is replaced.
std::string Quote(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string Number(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

std::string Microseconds(int64_t nanoseconds) {
  return fmt::format("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000);
}

// The fields that all events have. Times are microseconds.
std::string Head(char phase, std::string_view name, int64_t nanoseconds) {
  return fmt::format("{{\"ph\":\"{}\",\"name\":{},\"pid\":{},\"tid\":{},\"ts\":{}", phase,
                     Quote(name), getpid(), gettid(), Microseconds(nanoseconds));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trace>> Trace::Create(const std::string& path) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return ErrnoError(path, "cannot create", errno);
  return std::unique_ptr<Trace>(new Trace(path, descriptor));
}

Trace::Trace(std::string path, int descriptor)
    : path_(std::move(path)),
      start_(SteadyNanoseconds()),
      descriptor_(descriptor),
      buffer_("[\n") {}

Trace::~Trace() { Close().IgnoreError(); }

int64_t Trace::Now() const { return SteadyNanoseconds() - start_; }

void Trace::Complete(std::string_view name, int64_t begin, int64_t end,
                     const std::string& args_json) {
  Add(fmt::format("{},\"dur\":{},\"args\":{}}}", Head('X', name, begin), Microseconds(end - begin),
                  args_json));
}

void Trace::Wait(std::string_view name, int64_t begin, int64_t end, const std::string& args_json) {
  Add(fmt::format("{},\"cat\":\"{}\",\"dur\":{},\"args\":{}}}", Head('X', name, begin), kTraceWait,
                  Microseconds(end - begin), args_json));
}

void Trace::Flight(std::string_view name, int64_t begin, int64_t end, std::string args_json) {
  args_json.pop_back();
  args_json += fmt::format("{}\"in_flight_us\":{}}}", args_json.size() > 1 ? "," : "",
                           Microseconds(end - begin));
  int64_t id = 0;
  {
    const std::lock_guard lock(mutex_);
    id = ++flights_;
  }
  Span(kTraceCollective, static_cast<uint64_t>(id), name, begin, end, args_json);
}

void Trace::Span(std::string_view category, uint64_t id, std::string_view name, int64_t begin,
                 int64_t end, const std::string& args_json) {
  const std::string tail = fmt::format(",\"cat\":{},\"id\":{}", Quote(category), id);
  Add(Head('b', name, begin) + tail + fmt::format(",\"args\":{}}}", args_json));
  Add(Head('e', name, end) + tail + "}");
}

void Trace::Instant(std::string_view name, TraceArgs args) {
  Add(fmt::format("{},\"s\":\"t\",\"args\":{}}}", Head('i', name, Now()), ToJson(args)));
}

void Trace::Counter(std::string_view name, double value) {
  Add(fmt::format("{},\"args\":{{\"value\":{}}}}}", Head('C', name, Now()), Number(value)));
}

void Trace::SetRank(const TraceRank& rank) {
  Add(fmt::format("{},\"args\":{}}}", Head('M', kTraceRank, 0),
                  ToJson({{"rank", rank.rank},
                          {"process", rank.name},
                          {"run", rank.run},
                          {"start_ns", std::to_string(start_)},
                          {"clock_offset_ns", rank.clock_offset_ns},
                          {"clock_bound_ns", rank.clock_bound_ns}})));
}

void Trace::NameThread(std::string_view name) {
  Add(fmt::format("{},\"args\":{{\"name\":{}}}}}", Head('M', "thread_name", 0), Quote(name)));
}

std::string Trace::ToJson(TraceArgs args) {
  std::string json = "{";
  for (const TraceArg& arg : args) {
    json += fmt::format("{}{}:{}", json.size() > 1 ? "," : "", Quote(arg.key),
                        arg.is_text ? Quote(arg.text) : Number(arg.number));
  }
  return json + "}";
}

void Trace::Add(const std::string& event) {
  const std::lock_guard lock(mutex_);
  if (descriptor_ < 0) return;
  if (!first_) buffer_ += ",\n";
  first_ = false;
  buffer_ += event;
  if (buffer_.size() >= kFlushBytes) Flush();
}

void Trace::Flush() {
  if (status_.ok()) status_ = WriteAll(descriptor_, path_, buffer_);
  buffer_.clear();
}

absl::Status Trace::Close() {
  const std::lock_guard lock(mutex_);
  if (descriptor_ < 0) return status_;
  buffer_ += "\n]\n";
  Flush();
  if (close(descriptor_) != 0 && status_.ok()) status_ = ErrnoError(path_, "cannot close", errno);
  descriptor_ = -1;
  return status_;
}

void TraceScope::Begin(std::string_view name, TraceArgs args) {
  name_ = name;
  args_ = Trace::ToJson(args);
  begin_ = trace_->Now();
}

}  // namespace cadre
