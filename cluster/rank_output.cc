#include "cluster/rank_output.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace cadre {
namespace {

// Without the sequences that colour a terminal.
std::string Bare(std::string_view line) {
  std::string bare;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '\x1b' && i + 1 < line.size() && line[i + 1] == '[') {
      for (i += 2; i < line.size() && (line[i] < '@' || line[i] > '~'); ++i) {
      }
      continue;
    }
    if (line[i] != '\r' && line[i] != '\n') bare += line[i];
  }
  return bare;
}

void Write(int file, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = write(file, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

}  // namespace

Severity SeverityOf(std::string_view text) {
  const std::string line = Bare(text);
  // 2026-01-31 12:00:00.000 W train: message
  if (line.size() > 26 && line[4] == '-' && line[13] == ':' && line[23] == ' ' && line[25] == ' ') {
    if (line[24] == 'W') return Severity::kWarning;
    if (line[24] == 'E' || line[24] == 'C') return Severity::kError;
    return Severity::kPlain;
  }
  for (const char* start : {"error: ", "terminate called", "fatal: ", "  what():"}) {
    if (line.starts_with(start)) return Severity::kError;
  }
  for (const char* part : {": check failed: ", "ERROR: AddressSanitizer", "runtime error: "}) {
    if (line.find(part) != line.npos) return Severity::kError;
  }
  return line.starts_with("warning: ") ? Severity::kWarning : Severity::kPlain;
}

void RankTerminal::Raw(bool errors, std::string_view bytes) {
  if (bytes.empty()) return;
  Write(errors ? errors_ : output_, bytes);
  if (errors) line_open_ = bytes.back() != '\n';
}

void RankTerminal::Line(std::string_view text) {
  std::string line;
  // Rank 0 draws its progress again; elsewhere its half a line stays what it is.
  if (line_open_) line = redraws_ ? "\r\x1b[K" : "\n";
  line += text;
  line += '\n';
  Write(errors_, line);
  line_open_ = false;
}

void RankTerminal::Show(Said said, bool named) {
  std::string line = named ? fmt::format("[rank {}] {}", said.rank, said.line) : said.line;
  said.line = Bare(said.line);
  if (WasShown(said)) return;
  Line(line);
  if (shown_.size() == kRepeatLines) shown_.pop_front();
  shown_.push_back(std::move(said));
}

// A rank that says it twice means it, but for the one to blame, whose last words came first.
bool RankTerminal::WasShown(const Said& said) {
  while (!shown_.empty() && shown_.front().time + kRepeat < said.time) shown_.pop_front();
  return std::any_of(shown_.begin(), shown_.end(), [&](const Said& one) {
    return one.line == said.line && (blamed_ || one.rank != said.rank);
  });
}

void RankTerminal::Hold(int rank, std::string line, Clock::time_point now) {
  held_.push_back({rank, std::move(line), now});
}

void RankTerminal::Blame(int rank, std::string_view words, Clock::time_point now) {
  blamed_ = true;
  if (!words.empty()) Show({rank, std::string(words), now}, rank >= 0);
  ShowHeld();
}

void RankTerminal::ShowHeld() {
  for (Said& said : std::exchange(held_, {})) Show(std::move(said), said.rank != 0);
}

void RankTerminal::Release() {
  ShowHeld();
  shown_.clear();
  blamed_ = false;
}

void RankTerminal::ReleaseOld(Clock::time_point now) {
  for (; !held_.empty() && held_.front().time + kHold <= now; held_.pop_front()) {
    Show(held_.front(), held_.front().rank != 0);
  }
}

std::optional<RankTerminal::Clock::time_point> RankTerminal::NextRelease() const {
  return held_.empty() ? std::nullopt : std::optional(held_.front().time + kHold);
}

RankOutput::~RankOutput() {
  if (log_ >= 0) close(log_);
}

void RankOutput::Take(bool errors, std::string_view bytes) {
  if (log_ >= 0) Write(log_, bytes);
  std::string& open = open_[errors];
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    const std::string_view piece = bytes.substr(0, end == bytes.npos ? end : end + 1);
    bytes.remove_prefix(piece.size());
    // What rank 0 has drawn of a line is on the terminal already; an error comes in one piece.
    const bool error = errors && open.empty() && SeverityOf(piece) == Severity::kError;
    if (as_is_ && !(error && end != std::string_view::npos)) terminal_->Raw(errors, piece);
    open += piece;
    if (open.back() == '\n' || open.size() >= kMaxLineBytes) EndLine(errors, as_is_ && !error);
  }
}

void RankOutput::EndLine(bool errors, bool shown) {
  std::string line = std::exchange(open_[errors], "");
  if (line.back() == '\n') line.pop_back();
  const Severity severity = SeverityOf(line);
  if (errors) {
    // Of a line that was drawn again and again, what it was last.
    const size_t end = line.find_last_not_of('\r'), drawn = line.rfind('\r', end);
    last_[static_cast<int>(severity)] =
        Bare(drawn == line.npos || end == line.npos ? line : line.substr(drawn));
  }
  if (shown || severity == Severity::kPlain) return;
  if (severity == Severity::kError) {
    terminal_->Hold(rank_, std::move(line), RankTerminal::Clock::now());
  } else {
    terminal_->Line(fmt::format("[rank {}] {}", rank_, line));
  }
}

void RankOutput::Finish() {
  for (const bool errors : {false, true}) {
    if (!open_[errors].empty() && !as_is_) Take(errors, "\n");
  }
}

std::string RankOutput::LastError(bool any) const {
  for (const Severity severity : {Severity::kError, Severity::kWarning}) {
    const std::string& line = last_[static_cast<int>(severity)];
    if (!line.empty()) return line;
  }
  return any ? last_[0] : "";
}

}  // namespace cadre
