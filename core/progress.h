// How far a run is: one line redrawn in place on a terminal, lines now and then elsewhere.
//
//   Progress progress({.file = stderr, .terminal = isatty(2) == 1, .total_steps = 1000});
//   progress.Update({.step = 1, .loss = 8.3, ...}, seconds);    // of any monotonic clock
//   progress.Finish();
//
// One thread uses it. Output errors are ignored: a closed terminal must not stop a run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace cadre {

struct ProgressOptions {
  std::FILE* file = nullptr;  // borrowed
  bool terminal = false;
  int columns = 80;             // of the terminal
  int64_t total_steps = 0;      // where the run ends
  int64_t line_steps = 10;      // elsewhere: a line every so many steps,
  double line_seconds = 1;      // and never two within this time
  double redraw_seconds = 0.1;  // on a terminal
};

struct ProgressValues {
  int64_t step = 0;  // done
  double loss = 0;
  double tokens_per_second = 0;
  std::optional<double> mfu;  // 0..1; none: the peak is not known
};

class Progress {
 public:
  explicit Progress(const ProgressOptions& options) : options_(options) {}
  // Shown or not, as the clock and the step say; the last step always is.
  void Update(const ProgressValues& values, double now_seconds);
  // Ends the line that is being redrawn, so that what is written next has its own.
  void Finish();

 private:
  bool Due(const ProgressValues& values, double now_seconds) const;
  std::string Text(const ProgressValues& values, double now_seconds) const;
  std::string Bar(const std::string& text, int64_t step) const;

  const ProgressOptions options_;
  std::optional<double> start_seconds_;  // of the first update, after start_step_ steps
  int64_t start_step_ = 0;
  std::optional<double> shown_seconds_;
  bool line_open_ = false;
};

// "45s", "12m 05s", "3h 07m", "2d 04h".
std::string FormatDuration(double seconds);
// "950", "12.3k", "4.56M".
std::string FormatCount(double count);
// "950 B", "12.3 KiB", "1.25 GiB".
std::string FormatBytes(int64_t bytes);

}  // namespace cadre
