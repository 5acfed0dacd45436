// What operators see and do: request ids, the access log, trace contexts, the page,
// draining; and what a proxy in front could read otherwise than this server does.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <sstream>

#include "core/file.h"
#include "serving/http/chat_page.h"
#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";

std::string TempFile(const char* name) {
  return testing::TempDir() + name + std::to_string(getpid());
}

std::string HeaderOf(const Reply& reply, const std::string& name) {
  const size_t at = reply.head.find("\r\n" + name + ": ");
  if (at == std::string::npos) return "";
  const size_t begin = at + name.size() + 4;
  return reply.head.substr(begin, reply.head.find("\r\n", begin) - begin);
}

std::vector<Json> LinesOf(const std::string& path) {
  std::vector<Json> lines;
  std::istringstream text(ReadFile(path).value());
  for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
  return lines;
}

class OperationTest : public HttpServerTest {
 protected:
  Reply Post(std::string_view path, std::string_view headers, std::string_view body) {
    return Raw(fmt::format("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{}\r\n{}", path,
                           body.size(), headers, body));
  }
};

TEST_F(OperationTest, RequestIdsComeBack) {
  EXPECT_EQ(HeaderOf(Get("/health", "X-Request-Id: abc-1\r\n"), "X-Request-Id"), "abc-1");
  EXPECT_EQ(HeaderOf(Get("/nothing", "x-request-id: abc-2\r\n"), "X-Request-Id"), "abc-2");
  const std::string own = HeaderOf(Get("/health"), "X-Request-Id");
  EXPECT_FALSE(own.empty());
  EXPECT_NE(HeaderOf(Get("/health"), "X-Request-Id"), own);
  for (const std::string& bad : {std::string("a b"), std::string("a\"b"), std::string(200, 'a')}) {
    const std::string id =
        HeaderOf(Get("/health", "X-Request-Id: " + bad + "\r\n"), "X-Request-Id");
    EXPECT_NE(id, bad);
    EXPECT_FALSE(id.empty());
  }
  EXPECT_FALSE(HeaderOf(Raw("NONSENSE\r\n\r\n"), "X-Request-Id").empty());
  Reply stream =
      Post("/v1/completions", "X-Request-Id: abc-3\r\n", R"({"prompt":"a","stream":true})");
  EXPECT_EQ(HeaderOf(stream, "X-Request-Id"), "abc-3");
}

TEST_F(OperationTest, TheTraceContextGoesToTheChromeTrace) {
  const std::string path = TempFile("cadre_trace_");
  trace_ = *Trace::Create(path);
  Start({});
  const std::string parent = fmt::format("00-{}-00f067aa0ba902b7-01", kTraceId);
  Reply reply = Post("/v1/completions", "traceparent: " + parent + "\r\nX-Request-Id: abc\r\n",
                     R"({"prompt":"ab","max_tokens":100})");
  EXPECT_EQ(reply.status, 200);
  const std::string echoed = HeaderOf(reply, "traceparent");
  EXPECT_EQ(echoed.substr(0, 36), parent.substr(0, 36));
  EXPECT_NE(echoed, parent);
  EXPECT_EQ(HeaderOf(Get("/health", "traceparent: nonsense\r\n"), "traceparent"), "");
  EXPECT_EQ(Complete().status, 200);
  server_.reset();
  ASSERT_TRUE(trace_->Close().ok());
  std::map<std::string, int> phases;
  const Json events = Json::parse(ReadFile(path).value());
  for (const Json& event : events) {
    if (event.value("cat", "") != "request" || event["ph"] != "b") continue;
    ++phases[event["name"]];
    if (event["args"]["request_id"] != "abc") continue;
    EXPECT_EQ(event["args"]["trace_id"], kTraceId);
    EXPECT_EQ(event["args"]["parent_id"], "00f067aa0ba902b7");
    EXPECT_EQ(event["args"]["span_id"], echoed.substr(36, 16));
    EXPECT_EQ(event["args"]["generation_tokens"], sizeof(kReply));
  }
  EXPECT_EQ(phases["request"], 2);
  EXPECT_EQ(phases["front"], 2);
  EXPECT_EQ(phases["queue"], 2);
  EXPECT_EQ(phases["decode"], 2);
  std::filesystem::remove(path);
}

TEST_F(OperationTest, TheAccessLogNamesNoSecrets) {
  HttpServerOptions options;
  options.access_log_file = TempFile("cadre_access_");
  options.api_keys = {"canary-key"};
  Start(options);
  const std::string key = "Authorization: Bearer canary-key\r\n";
  Post(
      "/v1/completions?token=canary-query", key + "X-Request-Id: one\r\nCookie: canary-cookie\r\n",
      R"({"prompt":"canary-prompt","max_tokens":100,"stop":["canary-stop"],"user":"canary-user"})");
  Post("/v1/completions", key + "X-Request-Id: two\r\n",
       R"({"prompt":"canary-prompt","stream":true})");
  Get("/canary-path", "X-Api-Key: canary-wrong\r\nX-Request-Id: three\r\n");
  Get("/v1/models", "X-Api-Key: canary-wrong\r\nX-Request-Id: four\r\n");
  Raw("CANARY-METHOD canary HTTP/1.1\r\nX-Request-Id: five\r\n\r\n");
  Get("/health", "X-Request-Id: six\r\n");
  server_.reset();
  std::string text = ReadFile(options.access_log_file).value();
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  EXPECT_EQ(text.find("canary"), std::string::npos) << text;
  const std::vector<Json> lines = LinesOf(options.access_log_file);
  ASSERT_EQ(lines.size(), 5u) << text;
  std::map<std::string, Json> by_id;
  for (const Json& line : lines) by_id[line["id"]] = line;
  const Json& one = by_id["one"];
  EXPECT_EQ(one["route"], "/v1/completions");
  EXPECT_EQ(one["status"], 200);
  EXPECT_EQ(one["finish"], "stop");
  EXPECT_EQ(one["prompt_tokens"], 13);
  EXPECT_EQ(one["generation_tokens"], sizeof(kReply));
  EXPECT_EQ(one["key"].get<std::string>().size(), 8u);
  EXPECT_EQ(one["method"], "POST");
  EXPECT_GE(one["seconds"], one["first_token_seconds"]);
  EXPECT_GT(one["bytes_in"], 100);
  EXPECT_GT(one["bytes_out"], 100);
  EXPECT_TRUE(std::string(one["time"]).ends_with("Z"));
  EXPECT_EQ(by_id["two"]["generation_tokens"], 16);
  EXPECT_EQ(by_id["two"]["finish"], "length");
  EXPECT_EQ(by_id["three"]["route"], "other");
  EXPECT_EQ(by_id["three"]["status"], 404);
  EXPECT_EQ(by_id["four"]["status"], 401);
  EXPECT_FALSE(by_id["four"].contains("key"));
  EXPECT_EQ(by_id["five"]["method"], "other");
  std::filesystem::remove(options.access_log_file);
}

TEST_F(OperationTest, TheAccessLogSaysWhoLeft) {
  HttpServerOptions options;
  options.access_log_file = TempFile("cadre_access_left_");
  Start(options);
  engine_.Pause(true);
  {
    Client client(server_->port());
    client.Send(PostText("/v1/completions", R"({"prompt":"a"})"));
    engine_.WaitUntilRunning(1);
  }
  engine_.WaitUntilRunning(0);
  engine_.Pause(false);
  while (LinesOf(options.access_log_file).empty()) {
  }
  const Json line = LinesOf(options.access_log_file).front();
  EXPECT_EQ(line["status"], 0);
  EXPECT_EQ(line["finish"], "cancelled");
  // Moved away, it goes on in a new file.
  const std::string moved = options.access_log_file + ".1";
  std::filesystem::rename(options.access_log_file, moved);
  ASSERT_TRUE(server_->ReloadFiles().ok());
  Get("/nothing");
  server_.reset();
  EXPECT_EQ(LinesOf(options.access_log_file).size(), 1u);
  EXPECT_EQ(LinesOf(moved).size(), 1u);
  std::filesystem::remove(options.access_log_file);
  std::filesystem::remove(moved);
}

TEST_F(OperationTest, ThePageBringsItsOwnPolicy) {
  HttpServerOptions options;
  options.api_keys = {"secret"};
  options.admin_port = 0;
  Start(options);
  Reply reply = Get("/");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body, ChatPageHtml());
  EXPECT_EQ(HeaderOf(reply, "Content-Type"), "text/html; charset=utf-8");
  const std::string policy = HeaderOf(reply, "Content-Security-Policy");
  EXPECT_EQ(policy.find("unsafe"), std::string::npos);
  EXPECT_NE(policy.find("default-src 'none'; script-src 'sha256-"), std::string::npos) << policy;
  EXPECT_EQ(Post("/", "", "").status, 405);
  Client admin(server_->admin_port());
  admin.Send("GET / HTTP/1.1\r\n\r\n");
  EXPECT_EQ(ReadReply(&admin).status, 404);
  options.chat_page = false;
  Start(options);
  EXPECT_EQ(Get("/").status, 404);
}

TEST_F(OperationTest, WhatAProxyMayReadOtherwiseIsRefused) {
  constexpr char kHead[] = "POST /v1/completions HTTP/1.1\r\nHost: x\r\n";
  constexpr char kHidden[] = "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n";
  const std::pair<std::string, int> cases[] = {
      {"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400},
      {"Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\n", 501},
      {"Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n", 501},
      {"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501},
      {"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
      {"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400},
      {"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400},
      {"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400},
      {"Content-Length: 3, 3\r\n\r\nabc", 400},
      {"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
      {"Content-Length: +3\r\n\r\nabc", 400},
      {"Content-Length: 0x3\r\n\r\nabc", 400},
      {"Content-Length: 3 \r\n X: y\r\n\r\nabc", 400},
      {"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400},
      {"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", 400},
      {"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400},
      {"Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", 400},
      {"Transfer-Encoding: chunked\r\n\r\n1;" + std::string(100000, 'e') + "\r\na\r\n0\r\n\r\n",
       400}};
  for (const auto& [rest, status] : cases) {
    Client client(server_->port());
    client.Send(kHead + rest + kHidden);
    Reply reply = ReadReply(&client);
    EXPECT_EQ(reply.status, status) << rest.substr(0, 80);
    EXPECT_TRUE(client.AtEnd()) << rest.substr(0, 80);  // what hid in it was no request
  }
  EXPECT_EQ(
      Raw("POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").status,
      400);
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(OperationTest, RequestsThatComeEarlyWaitTheirTurn) {
  engine_.Pause(true);
  Client client(server_->port());
  client.Send(PostText("/v1/completions", R"({"prompt":"a","max_tokens":100})"));
  engine_.WaitUntilRunning(1);
  // More than the server takes in before its time.
  const std::string header = "X: " + std::string(8000, 'a') + "\r\n";
  for (int i = 0; i < 20; ++i) client.Send("GET /health HTTP/1.1\r\n" + header + "\r\n");
  engine_.Pause(false);
  EXPECT_EQ(ReadReply(&client).json()["choices"][0]["text"], kReply);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(ReadReply(&client).status, 200) << i;
}

// Its end may be read just when the answer is done; it must still be known when the next request is
// awaited.
TEST_F(OperationTest, AnInputThatEndsAtOnceEndsTheConnectionAfterTheAnswer) {
  bool ended = true;
  for (int i = 0; i < 300 && ended; ++i) {
    Client client(server_->port());
    client.Send(
        PostText("/v1/completions",
                 fmt::format(R"({{"prompt":"a","max_tokens":{},"stream":true}})", 1 + i % 6)));
    client.EndInput();
    client.ReadUntil("\r\n0\r\n\r\n");
    ended = client.AtEnd();
  }
  EXPECT_TRUE(ended);
}

TEST_F(OperationTest, ALeavingServerStillAnswersUntilItDrains) {
  Client kept(server_->port());
  kept.Send("GET /health HTTP/1.1\r\n\r\n");
  EXPECT_EQ(HeaderOf(ReadReply(&kept), "Connection"), "keep-alive");
  server_->Leave();
  EXPECT_EQ(Get("/ready").status, 503);
  EXPECT_EQ(Get("/health").status, 200);
  kept.Send(PostText("/v1/completions", R"({"prompt":"a","max_tokens":100})"));
  Reply reply = ReadReply(&kept);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(HeaderOf(reply, "Connection"), "close");
  // What has begun to come before it drains is answered, too.
  Client slow(server_->port());
  const std::string body = R"({"prompt":"a","max_tokens":100})";
  slow.Send(fmt::format(
      "POST /v1/completions HTTP/1.1\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
      body.size()));
  slow.ReadUntil("100 Continue\r\n\r\n");
  EXPECT_FALSE(server_->Drain(0));
  EXPECT_EQ(Complete().status, 503);
  slow.Send(body);
  EXPECT_EQ(ReadReply(&slow).json()["choices"][0]["text"], kReply);
  EXPECT_TRUE(server_->Drain(60));
}

}  // namespace
}  // namespace cadre
