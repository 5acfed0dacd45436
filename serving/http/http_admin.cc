// What operators do to the engine, on the administration's bind: sleep, wake, and whether it
// sleeps.
#include <atomic>
#include <memory>

#include "serving/http/http_connection.h"

namespace cadre {
namespace {

struct EngineJob {
  absl::Status status;
  int64_t weight_version = 0;  // that serves now, awake
  std::atomic<bool> done{false};
};

// The level of "level=1"; 1 without a query. Nothing else is a query here.
std::optional<int> LevelOf(std::string_view query) {
  constexpr std::string_view kName = "level=";
  if (query.empty()) return 1;
  if (!query.starts_with(kName) || query.size() != kName.size() + 1) return std::nullopt;
  const char digit = query.back();
  if (digit < '0' || digit > '9') return std::nullopt;
  return digit - '0';
}

std::string SleepBody(const EngineHealth& health) {
  return fmt::format(R"({{"is_sleeping":{},"level":{}}})", health.sleep_level > 0,
                     health.sleep_level);
}

}  // namespace

HttpConnection::Task<bool> HttpConnection::Administer(Endpoint endpoint, std::string_view query) {
  constexpr std::string_view kJson = "application/json";
  EngineClient& engine = shared_->service->engine();
  if (endpoint == Endpoint::kIsSleeping) {
    std::string state = SleepBody(engine.Health());
    co_return co_await Respond(200, std::move(state), kJson);
  }
  const std::optional<int> level = LevelOf(query);
  if (endpoint == Endpoint::kSleep && !level) {
    ApiError error = BadRequest("use /sleep?level=1 or /sleep?level=2", "level");
    co_return co_await RespondError(std::move(error));
  }
  StartClock();
  auto job = std::make_shared<EngineJob>();
  auto finish = [job, wake = Waker()](absl::Status status) {
    job->status = std::move(status);
    job->done = true;
    wake();
  };
  if (endpoint == Endpoint::kSleep) {
    engine.Sleep(*level, std::move(finish));
  } else {
    engine.Wake([job, finish](absl::StatusOr<int64_t> version) {
      if (version.ok()) job->weight_version = *version;
      finish(version.status());
    });
  }
  while (!job->done && !request_expired_) co_await WaitForNews();
  if (!job->done || !job->status.ok()) {
    ApiError error = job->done ? FromStatus(job->status) : TimedOut();
    co_return co_await RespondError(std::move(error));
  }
  std::string body =
      endpoint == Endpoint::kSleep
          ? SleepBody(engine.Health())
          : fmt::format(R"({{"is_sleeping":false,"weight_version":{}}})", job->weight_version);
  co_return co_await Respond(200, std::move(body), kJson);
}

}  // namespace cadre
