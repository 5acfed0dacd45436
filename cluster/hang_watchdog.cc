#include "cluster/hang_watchdog.h"

#include <utility>

#include "core/process_stat.h"

namespace cadre {
namespace {

int64_t Now() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

}  // namespace

HangWatchdog::HangWatchdog(HangWatchdogOptions options, OnHang on_hang)
    : options_(std::move(options)),
      on_hang_(std::move(on_hang)),
      hang_(options_.hang),
      thread_([this](const std::stop_token& stop) { Watch(stop); }) {}

std::vector<RankView> HangWatchdog::Look() const {
  std::vector<RankView> views;
  for (const HangWatchdogOptions::Rank& rank : options_.ranks) {
    RankView view{.rank = rank.rank};
    const absl::StatusOr<ProcessStat> stat = ReadProcessStat(rank.pid);
    view.ended = !stat.ok() || stat->state == 'Z';
    view.stopped = stat.ok() && (stat->state == 'T' || stat->state == 't');
    // A record that is not there yet, or not whole, is none.
    absl::StatusOr<FlightSnapshot> record = ReadFlightRecord(rank.record);
    if (record.ok()) view.record = *std::move(record);
    views.push_back(std::move(view));
  }
  return views;
}

void HangWatchdog::OthersWait(const std::string& text) {
  const std::lock_guard lock(mutex_);
  hang_.others_wait = text;
  hang_.others_wait_ns = Now();
}

void HangWatchdog::Watch(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  int64_t told = 0, expired = 0;  // hangs, by when the last thing moved
  while (!wake_.wait_for(lock, stop, options_.interval, [&] { return stop.stop_requested(); })) {
    if (stop.stop_requested()) return;
    const int64_t now = Now();
    const std::optional<HangReport> report = FindHang(Look(), now, hang_);
    if (!report) continue;
    if (std::exchange(told, report->progress_ns) != report->progress_ns) on_hang_(*report, false);
    const int64_t limit = options_.expires_after.count();
    if (limit > 0 && now - report->progress_ns >= limit &&
        std::exchange(expired, report->progress_ns) != report->progress_ns) {
      on_hang_(*report, true);
    }
  }
}

}  // namespace cadre
