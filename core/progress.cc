#include "core/progress.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace cadre {
namespace {

// Not with fmt::print, which throws where the reader is gone or the disk is full.
void Write(std::FILE* file, const std::string& text) {
  std::fputs(text.c_str(), file);
  std::fflush(file);
}

}  // namespace

std::string FormatDuration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e9) return "?";
  const int64_t s = std::llround(seconds);
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m {:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h {:02}m", s / 3600, s % 3600 / 60);
  return fmt::format("{}d {:02}h", s / 86400, s % 86400 / 3600);
}

std::string FormatCount(double count) {
  if (!std::isfinite(count)) return "?";
  if (count < 1000) return fmt::format("{:.0f}", count);
  if (count < 1e6) return fmt::format("{:.3g}k", count / 1e3);
  if (count < 1e9) return fmt::format("{:.3g}M", count / 1e6);
  return fmt::format("{:.3g}G", count / 1e9);
}

std::string FormatBytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  // Three digits are shown, so 1023.6 would be 1.02e3.
  while (std::abs(value) >= 999.5 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.3g} {}", value, kUnits[unit]);
}

void Progress::Update(const ProgressValues& values, double now_seconds) {
  if (!start_seconds_) {
    start_seconds_ = now_seconds;
    start_step_ = values.step;
  }
  if (!Due(values, now_seconds)) return;
  shown_seconds_ = now_seconds;
  const std::string text = Text(values, now_seconds);
  if (options_.terminal) {
    // "\x1b[K" erases what a longer line before has left.
    Write(options_.file, fmt::format("\r{}\x1b[K", Bar(text, values.step)));
    line_open_ = true;
  } else {
    Write(options_.file, text + "\n");
  }
}

void Progress::Finish() {
  if (line_open_) Write(options_.file, "\n");
  line_open_ = false;
}

bool Progress::Due(const ProgressValues& values, double now_seconds) const {
  if (!shown_seconds_ || values.step >= options_.total_steps) return true;
  const double since = now_seconds - *shown_seconds_;
  if (options_.terminal) return since >= options_.redraw_seconds;
  return values.step % std::max<int64_t>(options_.line_steps, 1) == 0 &&
         since >= options_.line_seconds;
}

std::string Progress::Text(const ProgressValues& values, double now_seconds) const {
  std::string text =
      fmt::format("step {}/{} loss {:.4f} {} tok/s", values.step, options_.total_steps, values.loss,
                  FormatCount(values.tokens_per_second));
  if (values.mfu) text += fmt::format(" mfu {:.1f}%", *values.mfu * 100);
  // The first step is slow (memory, kernels), so the rate starts after it.
  const int64_t done = values.step - start_step_;
  const double seconds = now_seconds - *start_seconds_;
  if (values.step >= options_.total_steps) return text + " done";
  if (done <= 0) return text;
  const double left =
      seconds / static_cast<double>(done) * static_cast<double>(options_.total_steps - values.step);
  return text + " eta " + FormatDuration(left);
}

std::string Progress::Bar(const std::string& text, int64_t step) const {
  const int room = options_.columns - static_cast<int>(text.size()) - 4;
  if (room < 5) return text.substr(0, static_cast<size_t>(std::max(options_.columns - 1, 1)));
  const int width = std::min(room, 30);
  const double share = options_.total_steps <= 0
                           ? 1.0
                           : static_cast<double>(step) / static_cast<double>(options_.total_steps);
  const int full = std::clamp(static_cast<int>(share * width), 0, width);
  return fmt::format("[{}{}] {}", std::string(static_cast<size_t>(full), '#'),
                     std::string(static_cast<size_t>(width - full), '.'), text);
}

}  // namespace cadre
