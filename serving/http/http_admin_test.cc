// Administration over real HTTP: sleep and wake, and who may ask for them.
#include <gtest/gtest.h>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

class AdministrationTest : public HttpServerTest {
 protected:
  void SetUp() override {
    HttpServerOptions options;
    options.admin_port = 0;
    options.request_timeout_s = timeout_;
    Start(options);
  }
  void Send(Client* client, std::string_view line, std::string_view headers = "") {
    client->Send(fmt::format("{} HTTP/1.1\r\nHost: x\r\n{}\r\n", line, headers));
  }
  Reply Ask(std::string_view line, std::string_view headers = "") {
    Client client(server_->admin_port());
    Send(&client, line, headers);
    return ReadReply(&client);
  }
  Json Sleeping() { return Ask("GET /is_sleeping").json(); }
  // A sequence that no client of the server waits for.
  void Submit() {
    struct Nobody : EventSink {
      void OnStep(std::vector<TokenEvent>) override {}
    };
    GenerationRequest request{.id = 1000,
                              .prompt = std::make_shared<const std::vector<int32_t>>(1, 'a')};
    ASSERT_TRUE(engine_.Submit({request}, std::make_shared<Nobody>()).ok());
  }

  double timeout_ = 600;
};

class ImpatientAdministrationTest : public AdministrationTest {
 protected:
  ImpatientAdministrationTest() { timeout_ = 0.05; }
};

TEST_F(AdministrationTest, OperatorsPutTheEngineToSleep) {
  EXPECT_EQ(Ask("GET /is_sleeping").json()["is_sleeping"], false);
  for (const char* bad : {"POST /sleep?level=", "POST /sleep?level=x", "POST /sleep?level=12",
                          "POST /sleep?depth=1"}) {
    EXPECT_EQ(Ask(bad).status, 400) << bad;
  }
  EXPECT_EQ(Ask("GET /sleep").status, 405);
  Reply reply = Ask("POST /sleep?level=2");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.json()["level"], 2);
  EXPECT_EQ(Get("/ready").status, 503);
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Complete().status, 503);
  EXPECT_EQ(Ask("GET /is_sleeping").json()["level"], 2);
  reply = Ask("POST /wake");
  EXPECT_EQ(reply.json()["weight_version"], 7);
  EXPECT_EQ(Ask("GET /is_sleeping").json()["is_sleeping"], false);
  EXPECT_EQ(Complete().status, 200);
  for (const char* path : {"/sleep", "/wake", "/is_sleeping"}) {
    EXPECT_EQ(Raw(PostText(path, "")).status, 404);
    EXPECT_EQ(Get(path).status, 404);
  }
}

TEST_F(AdministrationTest, TheLevelIsTheEnginesOwn) {
  EXPECT_EQ(Ask("POST /sleep?level=2").json()["level"], 2);
  const Reply reply = Ask("POST /sleep?level=1");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.json(), (Json{{"is_sleeping", true}, {"level", 2}}));  // it sleeps deeper
  EXPECT_EQ(Sleeping(), (Json{{"is_sleeping", true}, {"level", 2}}));
  EXPECT_EQ(Ask("POST /wake").status, 200);
  // Another than HTTP's sends it, too.
  engine_.Sleep(1, [](const absl::Status&) {});
  EXPECT_EQ(Sleeping(), (Json{{"is_sleeping", true}, {"level", 1}}));
}

TEST_F(AdministrationTest, ASleepThatAWakeOvertookIs409) {
  engine_.Pause(true);
  Submit();
  Client sleeper(server_->admin_port());
  Send(&sleeper, "POST /sleep?level=1");
  while (Get("/ready").status == 200) std::this_thread::yield();
  EXPECT_EQ(Sleeping()["is_sleeping"], false);  // what runs finishes first
  EXPECT_EQ(Ask("POST /wake").status, 200);
  EXPECT_EQ(ReadReply(&sleeper).status, 409);
  engine_.Pause(false);
}

TEST_F(ImpatientAdministrationTest, WhatIsNotWaitedForSleepsAllTheSame) {
  engine_.Pause(true);
  Submit();
  EXPECT_EQ(Ask("POST /sleep?level=2").status, 408);
  EXPECT_EQ(Sleeping()["is_sleeping"], false);
  engine_.Pause(false);
  engine_.WaitUntilRunning(0);
  while (engine_.Health().sleep_level == 0) std::this_thread::yield();
  EXPECT_EQ(Sleeping(), (Json{{"is_sleeping", true}, {"level", 2}}));
}

// A page's POST without a body goes out before its browser asks whether it may.
TEST_F(AdministrationTest, PagesAreNoOperators) {
  for (const char* origin : {"Origin: https://a.example\r\n", "Origin: null\r\n", "Origin:\r\n"}) {
    for (const char* line : {"POST /sleep?level=1", "POST /wake", "OPTIONS /sleep", "GET /metrics",
                             "GET /is_sleeping", "GET /health", "GET /nothing"}) {
      const Reply reply = Ask(line, origin);
      EXPECT_EQ(reply.status, 403) << line;
      EXPECT_EQ(reply.head.find("Access-Control"), std::string::npos) << reply.head;
    }
  }
  EXPECT_TRUE(engine_.Health().ready);
  const Reply options = Ask("OPTIONS /sleep");
  EXPECT_EQ(options.status, 200);
  EXPECT_NE(options.head.find("\r\nAllow: POST, OPTIONS\r\n"), std::string::npos) << options.head;
  EXPECT_EQ(options.head.find("Access-Control"), std::string::npos) << options.head;
  EXPECT_EQ(Ask("GET /metrics").status, 200);
}

}  // namespace
}  // namespace cadre
