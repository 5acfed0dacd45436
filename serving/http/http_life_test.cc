// A server's life over real HTTP: before its model is there, who is let in, what runs out of time.
#include <gtest/gtest.h>

#include <set>

#include "serving/http/http_test_fixture.h"
#include "serving/http/router.h"

namespace cadre {
namespace {

class HttpLifeTest : public HttpServerTest {
 protected:
  Reply Ask(uint16_t port, std::string_view method, std::string_view path,
            std::string_view headers) {
    Client client(port);
    client.Send(fmt::format("{} {} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{}\r\n", method,
                            path, headers));
    return ReadReply(&client);
  }
};

constexpr char kKey[] = "X-Api-Key: secret\r\n";

TEST_F(HttpLifeTest, WhileTheModelLoadsOnlyHealthSays200) {
  HttpServerOptions options;
  options.api_keys = {"secret"};
  options.admin_port = 0;
  options.service.served_model_names = {"tiny"};
  options.service.defaults.eos_token_ids = {kEnd};
  server_.reset();
  auto listening = HttpServer::Listen(options);
  ASSERT_TRUE(listening.ok()) << Message(listening.status());
  server_ = *std::move(listening);
  for (const uint16_t port : {server_->port(), server_->admin_port()}) {
    EXPECT_EQ(Ask(port, "GET", "/health", "").status, 200);
    const Reply ready = Ask(port, "GET", "/ready", "");
    EXPECT_EQ(ready.status, 503);
    EXPECT_NE(ready.body.find("being loaded"), std::string::npos) << ready.body;
    EXPECT_NE(ready.head.find("Retry-After: "), std::string::npos);
  }
  EXPECT_EQ(Get("/v1/models").status, 401);
  EXPECT_EQ(Get("/v1/models", kKey).status, 503);
  EXPECT_EQ(Get("/nothing", kKey).status, 404);
  EXPECT_EQ(Ask(server_->admin_port(), "GET", "/metrics", "").status, 503);
  EXPECT_EQ(Ask(server_->port(), "POST", "/v1/completions", kKey).status, 503);
  // Its port is taken already.
  options.port = server_->port();
  EXPECT_EQ(HttpServer::Listen(options).status().code(), absl::StatusCode::kUnavailable);
  Client kept(server_->port());
  kept.Send("GET /health HTTP/1.1\r\n\r\n");
  EXPECT_EQ(ReadReply(&kept).status, 200);

  server_->Serve({tokenizer_.get(), chat_.get(), &engine_});
  kept.Send("GET /ready HTTP/1.1\r\n\r\n");
  EXPECT_EQ(ReadReply(&kept).status, 200);
  EXPECT_EQ(Get("/v1/models", kKey).status, 200);
}

TEST_F(HttpLifeTest, AServerMayEndBeforeItServes) {
  HttpServerOptions options;
  options.service.served_model_names = {"tiny"};
  auto listening = HttpServer::Listen(options);
  ASSERT_TRUE(listening.ok()) << Message(listening.status());
  Client client((*listening)->port());
  client.Send("GET /health HTTP/1.1\r\n\r\n");
  EXPECT_EQ(ReadReply(&client).status, 200);
  listening->reset();
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpLifeTest, EveryRouteButThePublicOnesNeedsAKey) {
  HttpServerOptions options;
  options.api_keys = {"secret"};
  options.admin_port = 0;
  options.admin_api_keys = {"root"};
  Start(options);
  std::set<std::string> open;
  for (const Route& route : Routes()) {
    for (const uint16_t port : {server_->port(), server_->admin_port()}) {
      const int status = Ask(port, route.method, route.path, "").status;
      if (status == 200) {
        open.emplace(route.path);
      } else {
        EXPECT_TRUE(status == 401 || status == 404) << route.path << ": " << status;
      }
      const bool client = port == server_->port();
      const char* other = client ? "X-Api-Key: root\r\n" : kKey;
      EXPECT_EQ(Ask(port, route.method, route.path, other).status, status) << route.path;
    }
    const bool admin = route.access == Access::kMonitor || route.access == Access::kAdmin;
    const uint16_t port = admin ? server_->admin_port() : server_->port();
    const bool shut = route.access != Access::kPublic && route.access != Access::kPage;
    EXPECT_EQ(Ask(port, route.method, route.path, "").status, shut ? 401 : 200) << route.path;
  }
  EXPECT_EQ(open, (std::set<std::string>{"/health", "/ready", "/"}));
}

TEST_F(HttpLifeTest, AKeyIsATenantAndItsNameIsNotTheKey) {
  HttpServerOptions options;
  options.api_keys = {"secret", "other"};
  Start(options);
  for (const char* key : {"secret", "other", "secret"}) {
    const std::string body = R"({"prompt":"a"})";
    EXPECT_EQ(Raw(fmt::format("POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer {}\r\n"
                              "Content-Length: {}\r\n\r\n{}",
                              key, body.size(), body))
                  .status,
              200);
  }
  const std::vector<GenerationRequest> requests = engine_.requests();
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_EQ(requests[0].tenant, requests[2].tenant);
  EXPECT_NE(requests[0].tenant, requests[1].tenant);
  EXPECT_NE(requests[0].tenant, "");
  EXPECT_EQ(requests[0].tenant.find("secret"), std::string::npos);
}

TEST_F(HttpLifeTest, ReadinessTellsStrangersAStateAndNoFailure) {
  engine_.Sleep(2, [](const absl::Status&) {});
  const Reply reply = Get("/ready");
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(reply.json()["error"]["message"], "asleep at level 2");
  EXPECT_EQ(reply.body.find("/models"), std::string::npos);
}

TEST_F(HttpLifeTest, ARequestThatRunsTooLongIsTold) {
  HttpServerOptions options;
  options.request_timeout_s = 0.05;
  Start(options);
  engine_.Pause(true);
  const Reply whole = Complete();
  EXPECT_EQ(whole.status, 408);
  EXPECT_EQ(whole.json()["error"]["code"], "timeout");
  engine_.WaitUntilRunning(0);  // it was cancelled
  for (bool chat : {false, true}) {
    const Json fields = {{"stream", true}};
    const std::vector<Json> events = Events(chat ? Chat(fields) : Complete(fields));
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[0]["error"]["code"], "timeout");
    EXPECT_EQ(events[1], "[DONE]");
    engine_.WaitUntilRunning(0);
  }
  const auto named =
      NamedEvents(Post("/v1/messages", {{"model", "tiny"},
                                        {"max_tokens", 5},
                                        {"stream", true},
                                        {"messages", {{{"role", "user"}, {"content", "hi"}}}}}));
  ASSERT_FALSE(named.empty());
  EXPECT_EQ(named.back().first, "error");
  EXPECT_EQ(named.back().second["error"]["type"], "timeout_error");
  WaitForMetric("cadre_request_failure_total{kind=\"timeout\"}", 4);
  EXPECT_EQ(Metric("cadre_request_failure_total{kind=\"cancelled\"}"), 0);
}

TEST_F(HttpLifeTest, TimesBeginWithTheHeader) {
  using Clock = std::chrono::steady_clock;
  const std::string body = R"({"prompt":"ab","max_tokens":1})";
  Client client(server_->port());
  client.Send(
      fmt::format("POST /v1/completions HTTP/1.1\r\nExpect: 100-continue\r\n"
                  "Content-Length: {}\r\n\r\n",
                  body.size()));
  EXPECT_NE(client.ReadUntil("\r\n\r\n").find("100 Continue"), std::string::npos);
  const auto begun = Clock::now();
  // Longer than the request itself takes once its body is there.
  for (int i = 0; i < 100; ++i) EXPECT_EQ(Get("/health").status, 200);
  const std::chrono::duration<double> between = Clock::now() - begun;
  client.Send(body);
  EXPECT_EQ(ReadReply(&client).status, 200);
  WaitForMetric("cadre_e2e_request_latency_seconds_count", 1);
  EXPECT_GE(Metric("cadre_time_to_first_token_seconds_sum"), between.count());
  EXPECT_GE(Metric("cadre_e2e_request_latency_seconds_sum"), between.count());
}

TEST_F(HttpLifeTest, AnIdleConnectionIsClosed) {
  HttpServerOptions options;
  options.keep_alive_timeout_s = 0.05;  // the client waits for a minute
  Start(options);
  Client client(server_->port());
  client.Send("GET /health HTTP/1.1\r\n\r\n");
  EXPECT_EQ(ReadReply(&client).status, 200);
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpLifeTest, WhoTakesNoAnswerIsLeft) {
  HttpServerOptions options;
  options.write_timeout_s = 0.05;
  Start(options);
  Client client(server_->port());
  client.TakeLittle();
  client.Send("GET /health HTTP/1.1\r\n\r\n");
  EXPECT_EQ(ReadReply(&client).status, 200);
  // Pages of more bytes than all buffers on the way have room for.
  constexpr int kPages = 1000;
  std::string pages;
  for (int i = 0; i < kPages; ++i) pages += "GET / HTTP/1.1\r\n\r\n";
  client.Send(pages);
  WaitForMetric("cadre_http_connections", 1);  // who asks for it
  int answered = 0;
  while (ReadReply(&client).status == 200) ++answered;
  EXPECT_LT(answered, kPages);
}

TEST_F(HttpLifeTest, TemplatesGetTheirArguments) {
  chat_ = *ChatTemplate::Parse("{{ messages[0].content }}{{ flavour }}{{ enable_thinking }}");
  Start({});
  EXPECT_EQ(
      Chat({{"chat_template_kwargs", {{"flavour", "plum"}, {"enable_thinking", false}}}}).status,
      200);
  const std::string expected = "hiplumFalse";
  EXPECT_EQ(engine_.prompts().at(0), std::vector<int32_t>(expected.begin(), expected.end()));
}

TEST_F(HttpLifeTest, AModelMayHaveSeveralNames) {
  HttpServerOptions options;
  options.service.served_model_names = {"large", "small"};
  Start(options);
  const Json models = Get("/v1/models").json()["data"];
  ASSERT_EQ(models.size(), 2u);
  EXPECT_EQ(models[0]["id"], "large");
  EXPECT_EQ(models[1]["id"], "small");
  for (const char* name : {"large", "small"}) {
    const Reply reply = Complete({{"model", name}});
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.json()["model"], name);
  }
  EXPECT_EQ(Complete().json()["model"], "large");
  const Reply other = Complete({{"model", "tiny"}});
  EXPECT_EQ(other.status, 404);
  EXPECT_EQ(other.json()["error"]["code"], "model_not_found");
}

TEST_F(HttpLifeTest, AFullFrontPoolIs429) {
  HttpServerOptions options;
  options.max_front_queue = 0;
  Start(options);
  const Reply reply = Complete();
  EXPECT_EQ(reply.status, 429);
  EXPECT_EQ(reply.json()["error"]["code"], "queue_full");
  EXPECT_NE(reply.head.find("Retry-After: "), std::string::npos);
  EXPECT_TRUE(engine_.requests().empty());
  EXPECT_EQ(Get("/ready").status, 200);
}

// While text is made of an answer, an I/O thread goes on with its other connections.
TEST_F(HttpLifeTest, WholeAnswersAreWrittenByTheFrontPool) {
  HttpServerOptions options;
  options.front_threads = 1;
  Start(options);
  engine_.Pause(true);
  const std::string request = PostText("/v1/completions", R"({"prompt":"a","max_tokens":100})");
  Client whole(server_->port()), gone(server_->port()), busy(server_->port());
  whole.Send(request);
  gone.Send(request);
  engine_.WaitUntilRunning(2);
  engine_.HoldInfo(true);
  busy.Send(request);
  engine_.WaitUntilHeld();  // the pool's one thread
  engine_.Pause(false);
  engine_.WaitUntilRunning(0);
  EXPECT_TRUE(whole.Silent(std::chrono::milliseconds(100)));
  EXPECT_EQ(Get("/health").status, 200);
  gone.Close();
  engine_.HoldInfo(false);
  EXPECT_EQ(ReadReply(&whole).json()["choices"][0]["text"], kReply);
  EXPECT_EQ(ReadReply(&busy).json()["choices"][0]["text"], kReply);
}

TEST_F(HttpLifeTest, LogprobsOfAPromptAreStreamedByTheFrontPool) {
  HttpServerOptions options;
  options.front_threads = 1;
  Start(options);
  engine_.Pause(true);
  Client scored(server_->port()), plain(server_->port()), busy(server_->port());
  scored.Send(
      PostText("/v1/completions",
               R"({"prompt":"ab","max_tokens":100,"stream":true,"echo":true,"logprobs":2})"));
  plain.Send(PostText("/v1/completions", R"({"prompt":"a","max_tokens":100,"stream":true})"));
  engine_.WaitUntilRunning(2);
  engine_.HoldInfo(true);
  busy.Send(PostText("/v1/completions", R"({"prompt":"a"})"));
  engine_.WaitUntilHeld();
  engine_.Pause(false);
  EXPECT_EQ(Events(ReadReply(&plain)).back(), "[DONE]");
  EXPECT_NE(scored.ReadUntil("\r\n\r\n").find("200 OK"), std::string::npos);
  EXPECT_TRUE(scored.Silent(std::chrono::milliseconds(100)));
  engine_.HoldInfo(false);
  const std::string events = scored.ReadUntil("[DONE]\n\n");
  EXPECT_NE(events.find(R"("tokens":["a","b")"), std::string::npos) << events;
  EXPECT_EQ(ReadReply(&busy).status, 200);
}

TEST_F(HttpLifeTest, AFullFrontPoolKeepsNoAnswerBack) {
  HttpServerOptions options;
  options.front_threads = 1;
  options.max_front_queue = 1;
  Start(options);
  engine_.Pause(true);
  const std::string request = PostText("/v1/completions", R"({"prompt":"a","max_tokens":100})");
  Client whole(server_->port()), busy(server_->port()), queued(server_->port());
  whole.Send(request);
  engine_.WaitUntilRunning(1);
  engine_.HoldInfo(true);
  busy.Send(request);
  engine_.WaitUntilHeld();
  queued.Send(request);
  EXPECT_EQ(Complete().status, 429);
  engine_.Pause(false);
  const Reply reply = ReadReply(&whole);
  engine_.HoldInfo(false);
  EXPECT_EQ(reply.json()["choices"][0]["text"], kReply);
  EXPECT_EQ(ReadReply(&busy).status, 200);
  EXPECT_EQ(ReadReply(&queued).status, 200);
}

// Another attempt would end there, too, so no client's library may take it for a full queue.
TEST_F(HttpLifeTest, AGrammarOverItsBoundInMidTextIsTheRequestsFault) {
  engine_.FailAt(3, ResourceExhausted("the grammar is too ambiguous"));
  const Reply reply = Complete();
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.head.find("Retry-After"), std::string::npos);
  const Json error = reply.json()["error"];
  EXPECT_EQ(error["code"], "grammar_limit");
  EXPECT_EQ(error["type"], "invalid_request_error");
  EXPECT_EQ(error["message"], "the grammar is too ambiguous");
  const std::vector<Json> events = Events(Complete({{"stream", true}}));
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events[events.size() - 2]["error"]["code"], "grammar_limit");
}

// What a server does whose time to drain is over: the engine stops, and says so to whoever waits.
TEST_F(HttpLifeTest, AnswersThatTheEngineGivesUpEndWithAnError) {
  engine_.Pause(true);
  Client whole(server_->port()), stream(server_->port());
  whole.Send(PostText("/v1/completions", R"({"prompt":"a","max_tokens":100})"));
  stream.Send(PostText("/v1/completions", R"({"prompt":"a","max_tokens":100,"stream":true})"));
  engine_.WaitUntilRunning(2);
  EXPECT_FALSE(server_->Drain(0));
  engine_.CancelAll();
  EXPECT_TRUE(server_->Drain(60));
  const Reply refused = ReadReply(&whole);
  EXPECT_EQ(refused.status, 503);
  EXPECT_NE(refused.body.find("the server stopped"), std::string::npos) << refused.body;
  const std::vector<Json> events = Events(ReadReply(&stream));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0]["error"]["code"], "unavailable");
  EXPECT_EQ(events[1], "[DONE]");
}

}  // namespace
}  // namespace cadre
