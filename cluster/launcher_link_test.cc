#include "cluster/launcher_link.h"

#include <gtest/gtest.h>

#include <vector>

namespace cadre {
namespace {

using rendezvous::Event;

// Keeps the calls of Report until they are to be answered.
class SlowService final : public rendezvous::Rendezvous::CallbackService {
 public:
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const rendezvous::AttendRequest*,
                                   rendezvous::AttendReply*) override {
    return Finished(context);
  }
  grpc::ServerUnaryReactor* Join(grpc::CallbackServerContext* context,
                                 const rendezvous::JoinRequest*, rendezvous::JoinReply*) override {
    return Finished(context);
  }
  grpc::ServerUnaryReactor* Report(grpc::CallbackServerContext* context,
                                   const rendezvous::ReportRequest* request,
                                   rendezvous::ReportReply*) override {
    const std::lock_guard lock(mutex_);
    stalled_.push_back(request->event().stalled());
    came_.notify_all();
    grpc::ServerUnaryReactor* const call = context->DefaultReactor();
    waiting_.push_back(call);
    return call;
  }
  // Once `count` have come at all: what they said.
  std::vector<std::string> Await(size_t count) {
    std::unique_lock lock(mutex_);
    came_.wait(lock, [&] { return stalled_.size() >= count; });
    return stalled_;
  }
  void AnswerAll(const grpc::Status& status) {
    std::vector<grpc::ServerUnaryReactor*> calls;
    {
      const std::lock_guard lock(mutex_);
      calls.swap(waiting_);
    }
    for (grpc::ServerUnaryReactor* call : calls) call->Finish(status);
  }

 private:
  static grpc::ServerUnaryReactor* Finished(grpc::CallbackServerContext* context) {
    grpc::ServerUnaryReactor* const call = context->DefaultReactor();
    call->Finish(grpc::Status::OK);
    return call;
  }

  std::mutex mutex_;
  std::condition_variable came_;
  std::vector<std::string> stalled_;
  std::vector<grpc::ServerUnaryReactor*> waiting_;
};

class LauncherLinkTest : public testing::Test {
 protected:
  void SetUp() override {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    auto link = LauncherLink::Connect({.host = "127.0.0.1", .port = port, .size = 1});
    ASSERT_TRUE(link.ok()) << link.status();
    link_ = *std::move(link);
  }
  void TearDown() override {
    link_.reset();
    service_.AnswerAll(grpc::Status::OK);
  }
  void Report(const std::string& stalled) {
    Event event;
    event.set_kind(Event::STALLED);
    event.set_stalled(stalled);
    link_->Report(0, event);
  }

  SlowService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<LauncherLink> link_;
};

TEST_F(LauncherLinkTest, AReportWaitsForTheAnswerToTheOneBeforeIt) {
  std::vector<std::string> said;
  for (int i = 0; i < 20; ++i) Report(said.emplace_back(std::to_string(i)));
  // Whatever else was sent by now arrives before the answer to this.
  ASSERT_TRUE(link_->Join(-1, 1).ok());
  EXPECT_EQ(service_.Await(1).size(), 1);
  for (size_t count = 1; count <= said.size(); ++count) {
    EXPECT_EQ(service_.Await(count), std::vector(said.begin(), said.begin() + count));
    // One that is refused holds up no other.
    service_.AnswerAll(count % 2 == 0 ? grpc::Status::OK
                                      : grpc::Status(grpc::StatusCode::UNAVAILABLE, ""));
  }
}

TEST_F(LauncherLinkTest, ItsEndGivesUpReportsThatWait) {
  Report("first");
  Report("second");
  service_.Await(1);
  link_.reset();
  service_.AnswerAll(grpc::Status::OK);
  server_->Shutdown();
  EXPECT_EQ(service_.Await(1).size(), 1);
}

// Threads of its own serve it, so that a link's channel is the only one whose calls end on those
// that gRPC has for callbacks.
class PlainService final : public rendezvous::Rendezvous::Service {
 public:
  grpc::Status Attend(grpc::ServerContext*, const rendezvous::AttendRequest*,
                      rendezvous::AttendReply*) override {
    return grpc::Status::OK;
  }
  grpc::Status Report(grpc::ServerContext*, const rendezvous::ReportRequest*,
                      rendezvous::ReportReply*) override {
    return grpc::Status::OK;
  }
};

// gRPC ends those threads with the last channel; a channel that goes on one of them would end the
// thread under its own feet.
TEST(LauncherLink, ItsChannelGoesWithIt) {
  PlainService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  for (int i = 0; i < 200; ++i) {
    auto link = LauncherLink::Connect({.host = "127.0.0.1", .port = port, .size = 1});
    ASSERT_TRUE(link.ok()) << link.status();
    (*link)->Report(0, Event());
  }
}

}  // namespace
}  // namespace cadre
