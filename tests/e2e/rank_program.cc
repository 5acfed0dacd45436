// A rank for the launcher's tests: joins its job as a real one does, then acts as its arguments
// say, RANK:ACTION each, in order; `*` is every rank, and RANK@N only in the Nth start.
//
//   say=TEXT      a line on standard error         out=TEXT   one on standard output
//   exit=CODE                                      crash      ends by SIGABRT
//   begin=GROUP,OPERATION,LABEL,SEQUENCE           done       finishes all that was begun
//   step=N, activity=NAME,LAYER                    wait       until it gets a signal, then exits 0
//   gather=KEY    with all ranks                   file=PATH  creates it, empty but for the pid
//   hold          until it is killed; signals are ignored
//   environ=NAME  prints NAME=value
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "cluster/follow_launcher.h"
#include "cluster/join.h"

namespace {

using cadre::Membership;
using cadre::RankEnvironment;

std::optional<std::string> Variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

[[noreturn]] void Fail(const absl::Status& status) {
  std::fprintf(stderr, "error: %s\n", cadre::Message(status).c_str());
  std::exit(status.code() == absl::StatusCode::kUnavailable ? cadre::kPeerLostExitCode : 1);
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  parts.resize(4);
  return parts;
}

class Rank {
 public:
  Rank(const RankEnvironment& environment, Membership membership)
      : environment_(environment), membership_(std::move(membership)) {}

  bool Mine(const std::string& who) const {
    const size_t at = who.find('@');
    if (at != who.npos && std::stoi(who.substr(at + 1)) != environment_.generation) return false;
    return who.starts_with('*') || std::stoi(who) == environment_.rank;
  }

  void Act(const std::string& action, const std::string& value) {
    cadre::FlightRecorder& recorder = *membership_.recorder;
    const std::vector<std::string> parts = Split(value);
    if (action == "say") std::fprintf(stderr, "%s\n", value.c_str());
    if (action == "out") std::printf("%s\n", value.c_str()), std::fflush(stdout);
    if (action == "exit") std::_Exit(std::stoi(value));
    if (action == "crash") std::abort();
    if (action == "file") std::ofstream(value + ".new") << getpid(), Rename(value);
    if (action == "environ") Act("out", value + "=" + Variable(value).value_or(""));
    if (action == "step") recorder.SetStep(std::stoi(value));
    if (action == "activity") recorder.SetActivity(parts[0], std::stoi(parts[1]));
    if (action == "begin") {
      begun_.push_back(recorder.Begin(parts[0], parts[1], parts[2],
                                      static_cast<uint32_t>(std::stoi(parts[3])), 64));
      recorder.SetState(begun_.back(), cadre::OperationState::kAwaited);
    }
    if (action == "done") {
      for (const uint64_t id : begun_) recorder.SetState(id, cadre::OperationState::kDone);
    }
    if (action == "gather") {
      const auto values = membership_.bootstrap->AllGather(value, "");
      if (!values.ok()) Fail(values.status());
    }
    if (action == "wait") WaitForSignal();
    if (action == "hold") Hold();
  }

 private:
  static void Rename(const std::string& path) {
    std::rename((path + ".new").c_str(), path.c_str());
  }
  [[noreturn]] static void WaitForSignal() {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : {SIGINT, SIGTERM}) sigaddset(&set, signal);
    int signal = 0;
    sigwait(&set, &signal);
    std::fprintf(stderr, "warning: got signal %d\n", signal);
    std::_Exit(0);
  }
  [[noreturn]] static void Hold() {
    for (;;) pause();
  }

  const RankEnvironment environment_;
  Membership membership_;
  std::vector<uint64_t> begun_;
};

}  // namespace

int main(int argc, char** argv) {
  // Before any thread, so that `wait` is the only one that takes them.
  sigset_t set;
  sigemptyset(&set);
  const std::vector<std::string> actions(argv + 1, argv + argc);
  const auto has = [&](const char* name) {
    return std::any_of(actions.begin(), actions.end(),
                       [&](const std::string& a) { return a.ends_with(name); });
  };
  if (has(":wait") || has(":hold")) {
    for (const int signal : {SIGINT, SIGTERM}) sigaddset(&set, signal);
  }
  sigprocmask(SIG_BLOCK, &set, nullptr);
  if (const auto launcher = Variable(cadre::kLauncherVariable)) {
    if (const auto status = cadre::FollowLauncher(std::stoll(*launcher)); !status.ok())
      Fail(status);
  }
  const auto environment = cadre::FindRankEnvironment(Variable, "");
  if (!environment.ok()) Fail(environment.status());
  if (!*environment) Fail(cadre::InvalidArgument("no rank"));
  auto membership = cadre::JoinJob(**environment, std::chrono::seconds(60));
  if (!membership.ok()) Fail(membership.status());
  Rank rank(**environment, *std::move(membership));
  for (const std::string& action : actions) {
    const size_t colon = action.find(':'), equals = action.find('=', colon);
    if (!rank.Mine(action.substr(0, colon))) continue;
    rank.Act(action.substr(colon + 1, equals == action.npos ? equals : equals - colon - 1),
             equals == action.npos ? "" : action.substr(equals + 1));
  }
}
