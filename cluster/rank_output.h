// What ranks write: all of it goes to each rank's log; rank 0's goes to the terminal as it is, of
// the others only warnings and errors, with "[rank 3] " before them.
//
// Error lines are held back for a moment, rank 0's too: a rank that lost a peer often says so
// before the launcher knows which one died, and that one's last words come first. What several
// ranks say alike is shown once.
//
// One thread uses it. A terminal that is closed stops nothing.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

namespace cadre {

enum class Severity { kPlain, kWarning, kError };
// Of a whole line: our log's level, "error: ", and what runtimes say before they abort.
Severity SeverityOf(std::string_view line);

// Two descriptors that lines of several ranks share.
class RankTerminal {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kHold{700};
  // Later, or after so many other lines, the same words are news.
  static constexpr std::chrono::seconds kRepeat{10};
  static constexpr size_t kRepeatLines = 64;

  // `redraws`: standard error is a terminal, where rank 0 may be redrawing a line.
  RankTerminal(int output, int errors, bool redraws)
      : output_(output), errors_(errors), redraws_(redraws) {}

  void Raw(bool errors, std::string_view bytes);
  void Line(std::string_view text);
  void Hold(int rank, std::string line, Clock::time_point now);
  // The job fails because of this rank (-1: of none): its last words, "" where it has none, then
  // what is held.
  void Blame(int rank, std::string_view words, Clock::time_point now);
  // Shows what is held, or was long enough. The first is the end of a start.
  void Release();
  void ReleaseOld(Clock::time_point now);
  std::optional<Clock::time_point> NextRelease() const;

 private:
  struct Said {
    int rank;
    std::string line;
    Clock::time_point time;
  };
  void Show(Said said, bool named);
  void ShowHeld();
  bool WasShown(const Said& said);

  int output_, errors_;
  bool redraws_;
  bool line_open_ = false;  // on standard error
  bool blamed_ = false;
  std::deque<Said> held_;
  std::deque<Said> shown_;  // bare lines, until the same words are news
};

class RankOutput {
 public:
  static constexpr size_t kMaxLineBytes = 16384;  // longer ones are cut in pieces

  // `log`: a descriptor, owned; -1: none.
  RankOutput(int rank, bool as_is, int log, RankTerminal* terminal)
      : rank_(rank), as_is_(as_is), log_(log), terminal_(terminal) {}
  ~RankOutput();
  RankOutput(const RankOutput&) = delete;
  RankOutput& operator=(const RankOutput&) = delete;

  void Take(bool errors, std::string_view bytes);
  // What is left of lines without an end.
  void Finish();

  // The last error line, else the last warning, else, where `any`, the last line on standard error.
  std::string LastError(bool any) const;

 private:
  void EndLine(bool errors, bool shown);

  int rank_;
  bool as_is_;
  int log_;
  RankTerminal* terminal_;
  std::string open_[2];  // lines that have no end yet
  std::string last_[3];  // by severity
};

}  // namespace cadre
