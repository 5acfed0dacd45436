#include "cluster/launch_run.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <future>

#include "cluster/rendezvous_server.h"

namespace cadre {
namespace {

class LaunchRunTest : public testing::Test {
 protected:
  void SetUp() override {
    auto server =
        RendezvousServer::Start({.token = "secret", .nodes = {.min_nodes = 1, .max_nodes = 2}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ASSERT_EQ(pipe2(signals_, O_NONBLOCK), 0);
  }
  void TearDown() override {
    for (const int end : signals_) close(end);
  }
  std::unique_ptr<LauncherLink> Join(int node) {
    auto link = LauncherLink::Connect({.host = "127.0.0.1",
                                       .port = server_->port(),
                                       .token = "secret",
                                       .number = node,
                                       .size = 2,
                                       .timeout = std::chrono::minutes(1)});
    EXPECT_TRUE(link.ok()) << link.status();
    EXPECT_TRUE((*link)->Join(-1, 1).ok());
    return *std::move(link);
  }
  void Signal(int signal) {
    const signalfd_siginfo info = {.ssi_signo = static_cast<uint32_t>(signal)};
    EXPECT_EQ(write(signals_[1], &info, sizeof info), static_cast<ssize_t>(sizeof info));
  }

  std::unique_ptr<RendezvousServer> server_;
  int signals_[2];
  RankTerminal terminal_{STDOUT_FILENO, STDERR_FILENO, false};
};

TEST_F(LaunchRunTest, WhatComesAfterItsEndGoesNowhere) {
  const auto host = Join(0);
  auto link = Join(1);  // waits for the next start
  const LauncherOptions options{.nodes = {1, 2}, .node_rank = 1};
  Signal(SIGTERM);
  {
    LaunchRun run(options, {.generation = 0, .processes = 0}, link.get(), &terminal_, signals_[0]);
    const auto outcome = run.Run();
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    EXPECT_EQ(outcome->kind(), rendezvous::Event::DONE);
    EXPECT_TRUE(run.left());
  }
  // It may well get the number of a descriptor that the run had.
  const int other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  link.reset();  // ends the call that waits for an event
  uint64_t rings;
  EXPECT_LT(read(other, &rings, sizeof rings), 0);
  close(other);
}

TEST_F(LaunchRunTest, WhoStillAsksForTheOutcomeGetsItBeforeTheRendezvousCloses) {
  const auto host = Join(0), other = Join(1);
  std::promise<void> stalled, go_on;
  std::promise<rendezvous::Event> outcome;
  other->Watch(0, [&](const rendezvous::Event& event) {
    using rendezvous::Event;
    if (event.kind() == Event::DONE || event.kind() == Event::FAILED) outcome.set_value(event);
    if (event.kind() != Event::STALLED) return;  // it may be asked to make room
    stalled.set_value();
    go_on.get_future().wait();
  });
  std::promise<void> over;
  host->Watch(0, [&](const rendezvous::Event& event) {
    if (event.kind() == rendezvous::Event::DONE) over.set_value();
  });
  rendezvous::Event event;
  event.set_kind(rendezvous::Event::STALLED);
  host->Report(0, event);
  stalled.get_future().wait();
  event.set_kind(rendezvous::Event::DONE);
  host->Report(0, event);
  over.get_future().wait();
  const auto closing = std::async(std::launch::async, [this] { server_.reset(); });
  EXPECT_EQ(closing.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  go_on.set_value();
  EXPECT_EQ(outcome.get_future().get().kind(), rendezvous::Event::DONE);
}

}  // namespace
}  // namespace cadre
