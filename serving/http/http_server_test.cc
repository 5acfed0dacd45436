// The front over real HTTP on the loopback: connections, bounds, keys, cancelling, draining.
#include <gtest/gtest.h>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

TEST_F(HttpServerTest, PlainEndpoints) {
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Get("/ready?x=1").status, 200);
  EXPECT_EQ(Get("/v1/models").json()["data"][0]["id"], "tiny");
  EXPECT_EQ(Get("/v1/models/tiny").json(), Get("/v1/models").json()["data"][0]);
  EXPECT_EQ(Get("/v1/models/other/one").json()["error"]["code"], "model_not_found");
  EXPECT_EQ(Get("/v1/models/").status, 404);
  EXPECT_EQ(Get("/nothing").status, 404);
  EXPECT_EQ(Get("/v1/../health").status, 404);
  EXPECT_EQ(Get("/v1/completions").status, 405);
  EXPECT_EQ(Chat().status, 200);
  std::string metrics = Get("/metrics").body;
  for (const std::string& line :
       {std::string("cadre_num_requests_running 3\n"),
        fmt::format("cadre_generation_tokens_total {}\n", sizeof(kReply)),
        std::string("cadre_request_success_total{finished_reason=\"stop\"} 1\n"),
        std::string("cadre_time_to_first_token_seconds_count 1\n"),
        std::string("cadre_iteration_tokens_total_bucket{le=\"8\"} 5\n"),
        std::string("cadre_iteration_tokens_total_sum 300\n")}) {
    EXPECT_NE(metrics.find(line), std::string::npos) << line;
  }
}

// Load balancers probe with HEAD.
TEST_F(HttpServerTest, HeadIsAGetWithoutItsBody) {
  Client client(server_->port());
  for (const char* path : {"/health", "/ready", "/v1/models", "/", "/nothing"}) {
    const Reply whole = Get(path);
    client.Send(fmt::format("HEAD {} HTTP/1.1\r\n\r\n", path));
    const std::string head = client.ReadUntil("\r\n\r\n");
    EXPECT_NE(head.find(fmt::format("HTTP/1.1 {} ", whole.status)), std::string::npos) << head;
    const std::string length = fmt::format("Content-Length: {}\r\n", whole.body.size());
    EXPECT_NE(head.find(length), std::string::npos) << head;
  }
  const Reply refused = Raw("DELETE /health HTTP/1.1\r\n\r\n");
  EXPECT_EQ(refused.status, 405);
  EXPECT_NE(refused.head.find("Allow: GET, HEAD, OPTIONS\r\n"), std::string::npos);
  client.Send("HEAD /v1/completions HTTP/1.1\r\n\r\n");
  EXPECT_NE(client.ReadUntil("\r\n\r\n").find(" 405 "), std::string::npos);
}

TEST_F(HttpServerTest, MalformedInputIsRefusedAndTheServerLivesOn) {
  const std::pair<std::string, int> cases[] = {
      {PostText("/v1/completions", "{"), 400},
      {PostText("/v1/completions", "[]"), 400},
      {PostText("/v1/completions", "{\"prompt\":\"\xff\xfe\"}"), 400},
      {PostText("/v1/completions", "{\"prompt\":\"\\ud800\"}"), 400},
      {PostText("/v1/completions", std::string(100000, '[')), 400},
      {"NONSENSE\r\n\r\n", 400},
      {"GET / HTTP/9.9\r\n\r\n", 400},
      {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: "
       "chunked\r\n\r\n"
       "0\r\n\r\n",
       400},
      {"GET /health HTTP/1.1\r\nX: " + std::string(20000, 'a') + "\r\n\r\n", 431}};
  for (const auto& [bytes, status] : cases) {
    Reply reply = Raw(bytes);
    EXPECT_EQ(reply.status, status) << bytes.substr(0, 80);
    EXPECT_TRUE(reply.json().contains("error")) << reply.body;
  }
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(HttpServerTest, BoundsBodiesAndTime) {
  HttpServerOptions options;
  options.max_request_bytes = 1000;
  options.read_timeout_s = 0.05;
  Start(options);
  EXPECT_EQ(Raw(PostText("/v1/completions", std::string(100000, ' '))).status, 413);
  EXPECT_EQ(Raw("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" +
                std::string(2000, ' ') + "\r\n0\r\n\r\n")
                .status,
            413);
  EXPECT_EQ(Raw("POST /v1/completions HTTP/1.1\r\nHos").status, 408);
  EXPECT_EQ(Raw("POST /v1/completions HTTP/1.1\r\nContent-Length: 50\r\n\r\nabc").status, 408);
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(HttpServerTest, BoundsTheSumOfAllBodies) {
  HttpServerOptions options;
  options.max_request_bytes = 1000;
  options.max_total_request_bytes = 999;
  EXPECT_EQ(HttpServer::Start(options, {tokenizer_.get(), chat_.get(), &engine_}).status().code(),
            absl::StatusCode::kInvalidArgument);
  options.max_total_request_bytes = 1500;
  Start(options);
  std::string body = R"({"prompt":"a","max_tokens":100})";
  body.resize(900, ' ');
  const std::string request = PostText("/v1/completions", body);
  Client slow(server_->port());
  slow.Send(std::string_view(request).substr(0, request.size() - 100));
  Reply reply;
  do {  // until the server has read what the slow one has sent so far
    reply = Raw(request);
  } while (reply.status == 200);
  EXPECT_EQ(reply.status, 503);
  EXPECT_NE(reply.head.find("Retry-After"), std::string::npos);
  EXPECT_EQ(reply.json()["error"]["type"], "service_unavailable_error");
  // Once they are tokens they count no more: four of them run together.
  engine_.Pause(true);
  slow.Send(std::string_view(request).substr(request.size() - 100));
  engine_.WaitUntilRunning(1);
  std::vector<std::unique_ptr<Client>> others;
  for (size_t running = 2; running < 5; ++running) {
    others.push_back(std::make_unique<Client>(server_->port()));
    others.back()->Send(request);
    engine_.WaitUntilRunning(running);
  }
  engine_.Pause(false);
  EXPECT_EQ(ReadReply(&slow).json()["choices"][0]["text"], kReply);
}

TEST_F(HttpServerTest, KeepsConnectionsAlive) {
  Client client(server_->port());
  for (int i = 0; i < 3; ++i) {
    client.Send(PostText("/v1/completions", R"({"prompt":"a","stream":true})"));
    EXPECT_EQ(Events(ReadReply(&client)).back(), "[DONE]");
    client.Send("GET /health HTTP/1.1\r\n\r\nGET /ready HTTP/1.1\r\n\r\n");
    EXPECT_EQ(ReadReply(&client).status, 200);
    EXPECT_EQ(ReadReply(&client).status, 200);
  }
  client.Send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(ReadReply(&client).status, 200);
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpServerTest, ADisconnectCancels) {
  engine_.Pause(true);
  for (const char* stream : {"false", "true"}) {
    size_t before = engine_.num_cancelled();
    Client client(server_->port());
    client.Send(
        PostText("/v1/completions", fmt::format(R"({{"prompt":"a","n":2,"stream":{}}})", stream)));
    engine_.WaitUntilRunning(2);
    client.Close();
    engine_.WaitUntilRunning(0);
    EXPECT_EQ(engine_.num_cancelled(), before + 2);
  }
  engine_.Pause(false);
  EXPECT_EQ(Complete().status, 200);
}

TEST_F(HttpServerTest, AClientThatOnlyEndsItsInputGetsItsAnswer) {
  for (bool stream : {false, true}) {
    engine_.Pause(true);
    Client client(server_->port());
    client.Send(PostText("/v1/completions",
                         fmt::format(R"({{"prompt":"a","max_tokens":100,"stream":{}}})", stream)));
    engine_.WaitUntilRunning(1);
    client.EndInput();
    // The server has seen it once it asks whether somebody still reads.
    if (!stream) {
      EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
      engine_.Pause(false);
      EXPECT_EQ(ReadReply(&client).json()["choices"][0]["text"], kReply);
    } else {
      EXPECT_NE(client.ReadUntil("3\r\n:\n\n\r\n").find("HTTP/1.1 200 OK"), std::string::npos);
      engine_.Pause(false);
      EXPECT_NE(client.ReadUntil("[DONE]").find("\"finish_reason\":\"stop\""), std::string::npos);
      client.ReadUntil("\r\n0\r\n\r\n");
    }
    EXPECT_TRUE(client.AtEnd());
  }
  EXPECT_EQ(engine_.num_cancelled(), 0u);
}

TEST_F(HttpServerTest, TheEndOfInputEndsAnHttp10Request) {
  engine_.Pause(true);
  Client client(server_->port());
  client.Send("POST /v1/completions HTTP/1.0\r\nContent-Length: 14\r\n\r\n{\"prompt\":\"a\"}");
  engine_.WaitUntilRunning(1);
  client.EndInput();
  engine_.WaitUntilRunning(0);
  EXPECT_EQ(engine_.num_cancelled(), 1u);
  engine_.Pause(false);
}

TEST_F(HttpServerTest, FullQueueIs429AndEngineErrorsAreTold) {
  engine_.LimitQueue(1);
  Reply reply = Complete({{"n", 2}, {"stream", true}});
  EXPECT_EQ(reply.status, 429);
  EXPECT_NE(reply.head.find("Retry-After"), std::string::npos);
  EXPECT_EQ(Complete().status, 200);
  engine_.FailAt(3);
  EXPECT_EQ(Complete().status, 500);
  std::vector<Json> events = Events(Complete({{"stream", true}}));
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(events[events.size() - 2]["error"]["message"], "the engine broke");
}

TEST_F(HttpServerTest, KeysGuardEveryRouteButHealth) {
  HttpServerOptions options;
  options.api_keys = {"secret", "other"};
  Start(options);
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Get("/ready").status, 200);
  for (const char* path : {"/v1/models", "/metrics"}) {
    EXPECT_EQ(Get(path).status, 401);
    EXPECT_EQ(Get(path, "Authorization: Bearer secre\r\n").status, 401);
    EXPECT_EQ(Get(path, "Authorization: Bearer secretsecret\r\n").status, 401);
    EXPECT_EQ(Get(path, "Authorization: Bearer \r\n").status, 401);
    EXPECT_EQ(Get(path, "Authorization: Bearer other\r\n").status, 200);
    EXPECT_EQ(Get(path, "X-Api-Key: secret\r\n").status, 200);
  }
  EXPECT_EQ(Chat().status, 401);
  EXPECT_EQ(Complete().status, 401);
}

TEST_F(HttpServerTest, KeysCanBeReplacedAndModelsBePublic) {
  HttpServerOptions options;
  options.host = "0.0.0.0";
  options.api_keys = {"first"};
  options.public_models = true;
  Start(options);
  EXPECT_EQ(Get("/v1/models").status, 200);
  EXPECT_EQ(Get("/metrics").status, 401);
  EXPECT_EQ(Get("/metrics", "X-Api-Key: first\r\n").status, 200);
  EXPECT_EQ(server_->ReplaceKeys({}, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Get("/metrics", "X-Api-Key: first\r\n").status, 200);
  ASSERT_TRUE(server_->ReplaceKeys({"second"}, {}).ok());
  EXPECT_EQ(Get("/metrics", "X-Api-Key: first\r\n").status, 401);
  EXPECT_EQ(Get("/metrics", "X-Api-Key: second\r\n").status, 200);
}

TEST_F(HttpServerTest, OtherMachinesNeedAKey) {
  auto refusal = [](const HttpServerOptions& options) {
    return Message(CheckHttpOptions(options));
  };
  HttpServerOptions options;
  options.service.served_model_names = {"tiny"};
  EXPECT_EQ(refusal(options), "");
  for (const char* host : {"0.0.0.0", "::", "192.0.2.1"}) {
    options.host = host;
    EXPECT_NE(refusal(options).find(std::string("host ") + host), std::string::npos);
    EXPECT_NE(refusal(options).find(" api_key_file"), std::string::npos);
  }
  options.api_keys = {"secret"};
  EXPECT_EQ(refusal(options), "");
  options.admin_host = "0.0.0.0";
  EXPECT_EQ(refusal(options), "");  // there is none
  options.admin_port = 0;
  EXPECT_NE(refusal(options).find("admin_api_key_file"), std::string::npos);
  options.admin_api_keys = {"root"};
  EXPECT_EQ(refusal(options), "");
  options.api_keys = {"two words"};
  EXPECT_EQ(refusal(options).find("two words"), std::string::npos);
  EXPECT_NE(refusal(options), "");
  options.api_keys.clear();
  options.allow_unauthenticated = true;
  EXPECT_EQ(refusal(options), "");
}

TEST_F(HttpServerTest, AdministrationHasABindOfItsOwn) {
  HttpServerOptions options;
  options.api_keys = {"client"};
  options.admin_port = 0;
  options.admin_api_keys = {"root"};
  options.max_connections = 1;
  Start(options);
  auto ask = [](uint16_t port, const char* path, const char* key) {
    Client client(port);
    client.Send(fmt::format("GET {} HTTP/1.1\r\nX-Api-Key: {}\r\n\r\n", path, key));
    return ReadReply(&client).status;
  };
  ASSERT_NE(server_->admin_port(), 0);
  {
    Client taken(server_->port());  // who takes all the clients' places leaves the administration's
    taken.Send("GET /metrics HTTP/1.1\r\nX-Api-Key: client\r\n\r\n");
    EXPECT_EQ(ReadReply(&taken).status, 404);
    EXPECT_EQ(ask(server_->admin_port(), "/metrics", "root"), 200);
    EXPECT_EQ(ask(server_->admin_port(), "/metrics", "client"), 401);
    EXPECT_EQ(ask(server_->admin_port(), "/health", ""), 200);
    EXPECT_EQ(ask(server_->admin_port(), "/v1/models", "root"), 404);
  }
  // Each takes the only place, which is free again once the server has seen the end of the last.
  auto admitted = [&](const char* key) {
    int status = 0;
    while ((status = ask(server_->port(), "/v1/models", key)) == 0) {
    }
    return status;
  };
  EXPECT_EQ(admitted("client"), 200);
  EXPECT_EQ(admitted("root"), 401);
}

TEST_F(HttpServerTest, WhoIsRefusedNeedNotSendTheBody) {
  HttpServerOptions options;
  options.api_keys = {"secret"};
  Start(options);
  constexpr char kBody[] = "Host: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n";
  const std::pair<const char*, int> cases[] = {
      {"POST /v1/completions", 401}, {"POST /v1/chat/completions", 401},
      {"GET /v1/models", 401},       {"POST /nothing", 404},
      {"POST /health", 405},         {"OPTIONS /v1/completions", 200},
      {"GET /health", 200}};
  for (const auto& [line, status] : cases) {
    Client client(server_->port());
    client.Send(fmt::format("{} HTTP/1.1\r\n{}", line, kBody));
    Reply reply = ReadReply(&client);
    EXPECT_EQ(reply.status, status) << line;
    EXPECT_NE(reply.head.find("Connection: close\r\n"), std::string::npos) << line;
    EXPECT_TRUE(client.AtEnd());
  }
  // Who sends it all the same reads the answer too.
  EXPECT_EQ(Raw(PostText("/v1/completions", std::string(1000000, ' '))).status, 401);
  Client friendly(server_->port());
  friendly.Send(
      "POST /v1/completions HTTP/1.1\r\nX-Api-Key: secret\r\nContent-Length: 14\r\n"
      "Expect: 100-continue\r\n\r\n");
  EXPECT_EQ(friendly.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  friendly.Send("{\"prompt\":\"a\"}");
  EXPECT_EQ(ReadReply(&friendly).status, 200);
}

TEST_F(HttpServerTest, PagesOfOtherOriginsMayCallIt) {
  constexpr char kOrigin[] = "Origin: https://a.example\r\n";
  auto preflight = [&](const std::string& path) {
    return Raw("OPTIONS " + path + " HTTP/1.1\r\n" + kOrigin +
               "Access-Control-Request-Method: POST\r\n"
               "Access-Control-Request-Headers: authorization,content-type\r\n\r\n");
  };
  HttpServerOptions options;
  options.api_keys = {"secret"};  // preflights bring none
  Start(options);
  Reply reply = preflight("/v1/chat/completions");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body, "");
  for (const char* line : {"Access-Control-Allow-Origin: https://a.example\r\n", "Vary: Origin\r\n",
                           "Access-Control-Allow-Methods: GET, POST\r\n",
                           "Access-Control-Allow-Headers: authorization,content-type\r\n"}) {
    EXPECT_NE(reply.head.find(line), std::string::npos) << line << reply.head;
  }
  EXPECT_EQ(reply.head.find("Credentials"), std::string::npos);
  EXPECT_EQ(preflight("/nothing").status, 404);
  reply = Get("/v1/models", kOrigin);
  EXPECT_EQ(reply.status, 401);
  EXPECT_NE(reply.head.find("Allow-Origin: https://a.example\r\n"), std::string::npos);
  EXPECT_EQ(Get("/health").head.find("Access-Control"), std::string::npos);

  options.api_keys.clear();
  options.cors_allowed_origins = {"https://a.example"};
  Start(options);
  EXPECT_NE(preflight("/v1/completions").head.find("Credentials: true"), std::string::npos);
  EXPECT_EQ(Get("/health", "Origin: https://b.example\r\n").head.find("Access-Control"),
            std::string::npos);
  Client client(server_->port());
  const std::string stream = PostText("/v1/completions", R"({"prompt":"a","stream":true})");
  client.Send(fmt::format("{}\r\n{}{}", stream.substr(0, stream.find("\r\n")), kOrigin,
                          stream.substr(stream.find("\r\n") + 2)));
  reply = ReadReply(&client);
  EXPECT_NE(reply.head.find("Allow-Origin: https://a.example\r\n"), std::string::npos);
  EXPECT_EQ(Events(reply).back(), "[DONE]");
}

TEST_F(HttpServerTest, DrainsAndStops) {
  engine_.Pause(true);
  Client client(server_->port());
  client.Send(PostText("/v1/completions", R"({"prompt":"a","max_tokens":100})"));
  engine_.WaitUntilRunning(1);
  EXPECT_FALSE(server_->Drain(0));
  EXPECT_EQ(Get("/ready").status, 503);
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Complete().status, 503);
  engine_.Pause(false);
  EXPECT_TRUE(server_->Drain(60));
  EXPECT_EQ(ReadReply(&client).json()["choices"][0]["text"], kReply);
  server_->Stop();
}

TEST_F(HttpServerTest, StopCancelsWhatRuns) {
  engine_.Pause(true);
  Client client(server_->port());
  client.Send(PostText("/v1/completions", R"({"prompt":"a","stream":true})"));
  engine_.WaitUntilRunning(1);
  server_->Stop();
  engine_.WaitUntilRunning(0);
}

TEST_F(HttpServerTest, ATakenPortIsAnError) {
  HttpServerOptions options;
  options.port = server_->port();
  auto second = HttpServer::Start(options, {tokenizer_.get(), chat_.get(), &engine_});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Message(second.status()).find("cannot listen on 127.0.0.1"), std::string::npos);
}

TEST_F(HttpServerTest, ConnectionsAreBounded) {
  HttpServerOptions options;
  options.max_connections = 2;
  Start(options);
  Client first(server_->port()), second(server_->port());
  for (Client* client : {&first, &second}) {
    client->Send("GET /health HTTP/1.1\r\n\r\n");
    EXPECT_EQ(ReadReply(client).status, 200);
  }
  EXPECT_TRUE(Client(server_->port()).AtEnd());
  first.Send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(ReadReply(&first).status, 200);
  first.Close();
  // Its place is free as soon as the server has seen the end of it.
  while (Get("/health").status != 200) {
  }
}

TEST_F(HttpServerTest, ASlowClientLosesItsStreamAlone) {
  HttpServerOptions options;
  options.service.max_unsent_bytes = 1;  // any delta is too much
  Start(options);
  std::vector<Json> events = Events(Complete({{"stream", true}}));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0]["error"]["code"], "slow_client");
  EXPECT_EQ(events[1], "[DONE]");
  engine_.WaitUntilRunning(0);
  EXPECT_EQ(Complete().json()["choices"][0]["text"], kReply);  // gathered, so never too slow
}

}  // namespace
}  // namespace cadre
