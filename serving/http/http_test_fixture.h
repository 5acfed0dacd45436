// For the front's tests: a server over TestEngine on the loopback, and a client with its own idea
// of HTTP.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "serving/http/http_server.h"
#include "serving/http/test_engine.h"
#include "serving/http/test_tokenizer.h"

namespace cadre {

// Blocking, with a bound against hanging.
class Client {
 public:
  explicit Client(uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    timeval limit{.tv_sec = 60};
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  ~Client() { Close(); }
  void Close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  // From now on little is taken that nobody reads.
  void TakeLittle() {
    const int bytes = 4096;
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
  }
  void EndInput() { ::shutdown(socket_, SHUT_WR); }
  // Until `mark` has come; what came up to it.
  std::string ReadUntil(std::string_view mark) {
    while (buffer_.find(mark) == std::string::npos && Fill()) {
    }
    return Take(buffer_.find(mark) == std::string::npos ? buffer_.size()
                                                        : buffer_.find(mark) + mark.size());
  }
  std::string ReadBytes(size_t size) {
    while (buffer_.size() < size && Fill()) {
    }
    return Take(std::min(size, buffer_.size()));
  }
  // Whether nothing comes in this time.
  bool Silent(std::chrono::milliseconds time) {
    pollfd waiting{.fd = socket_, .events = POLLIN, .revents = 0};
    return buffer_.empty() && ::poll(&waiting, 1, static_cast<int>(time.count())) == 0;
  }
  // Whether the server has closed the connection; a silent one is not closed.
  bool AtEnd() { return buffer_.empty() && !Fill() && !silent_; }

 private:
  bool Fill() {
    char chunk[4096];
    ssize_t size = ::recv(socket_, chunk, sizeof(chunk), 0);
    silent_ = size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    if (size > 0) buffer_.append(chunk, static_cast<size_t>(size));
    return size > 0;
  }
  std::string Take(size_t size) {
    std::string taken = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return taken;
  }
  int socket_;
  bool silent_ = false;
  std::string buffer_;
};

struct Reply {
  int status = 0;
  std::string head;
  std::string body;
  Json json() const { return Json::parse(body, nullptr, false); }
};

inline Reply ReadReply(Client* client) {
  Reply reply;
  reply.head = client->ReadUntil("\r\n\r\n");
  if (reply.head.size() > 12) reply.status = std::atoi(reply.head.c_str() + 9);
  size_t length = reply.head.find("Content-Length: ");
  if (length != std::string::npos) {
    reply.body = client->ReadBytes(std::stoul(reply.head.substr(length + 16)));
    return reply;
  }
  while (reply.head.find("chunked") != std::string::npos) {
    size_t size = std::stoul("0" + client->ReadUntil("\r\n"), nullptr, 16);
    reply.body += client->ReadBytes(size);
    client->ReadBytes(2);
    if (size == 0) break;
  }
  return reply;
}

inline std::string PostText(std::string_view path, std::string_view body) {
  return fmt::format("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}", path,
                     body.size(), body);
}

class HttpServerTest : public testing::Test {
 protected:
  void SetUp() override { Start({}); }
  void Start(HttpServerOptions options) {
    server_.reset();
    if (!tokenizer_) {
      auto tokenizer = Tokenizer::Parse("test", TokenizerJson());
      ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
      tokenizer_ = *std::move(tokenizer);
      chat_ = *ChatTemplate::Parse(
          "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% "
          "endif "
          "%}<|start|>{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
          "{% if add_generation_prompt %}<|start|>assistant:{% endif %}");
    }
    auto& names = options.service.served_model_names;
    if (names == ServiceOptions().served_model_names) names = {"tiny"};
    options.service.version = "1.2.3";
    options.service.defaults.eos_token_ids = {kEnd};
    auto server = HttpServer::Start(std::move(options),
                                    {tokenizer_.get(), chat_.get(), &engine_, trace_.get()});
    ASSERT_TRUE(server.ok()) << Message(server.status());
    server_ = *std::move(server);
  }
  Reply Raw(std::string_view bytes) {
    Client client(server_->port());
    client.Send(bytes);
    return ReadReply(&client);
  }
  Reply Get(std::string_view path, std::string_view headers = "") {
    return Raw(fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n", path, headers));
  }
  Reply Post(std::string_view path, const Json& body) { return Raw(PostText(path, body.dump())); }
  Reply Chat(Json extra = Json::object()) {
    Json body = {{"model", "tiny"}, {"messages", {{{"role", "user"}, {"content", "hi"}}}}};
    body.update(extra);
    return Raw(PostText("/v1/chat/completions", body.dump()));
  }
  Reply Complete(Json extra = Json::object()) {
    Json body = {{"prompt", "ab"}, {"max_tokens", 100}};
    body.update(extra);
    return Raw(PostText("/v1/completions", body.dump()));
  }

  // The sample of /metrics that begins so, without its name.
  double Metric(std::string_view sample) {
    const std::string text = Get("/metrics").body;
    const size_t at = text.find(fmt::format("\n{} ", sample));
    EXPECT_NE(at, std::string::npos) << sample;
    return at == std::string::npos ? -1 : std::atof(text.c_str() + at + sample.size() + 2);
  }
  void WaitForMetric(std::string_view sample, double value) {
    const auto began = std::chrono::steady_clock::now();
    while (Metric(sample) != value) {
      ASSERT_LT(std::chrono::steady_clock::now() - began, std::chrono::minutes(1)) << sample;
      std::this_thread::yield();
    }
  }

  TestEngine engine_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
  std::unique_ptr<Trace> trace_;  // null: off
  std::unique_ptr<HttpServer> server_;
};

// (name, data) of each event of a stream whose events are named.
inline std::vector<std::pair<std::string, Json>> NamedEvents(const Reply& reply) {
  std::vector<std::pair<std::string, Json>> events;
  for (size_t at = 0; (at = reply.body.find("event: ", at)) != std::string::npos; ++at) {
    const size_t data = reply.body.find("\ndata: ", at);
    const size_t end = reply.body.find("\n\n", data);
    events.emplace_back(reply.body.substr(at + 7, data - at - 7),
                        Json::parse(reply.body.substr(data + 7, end - data - 7), nullptr, false));
  }
  return events;
}

inline std::vector<Json> Events(const Reply& reply) {
  std::vector<Json> events;
  for (size_t at = 0; (at = reply.body.find("data: ", at)) != std::string::npos; at += 6) {
    std::string data = reply.body.substr(at + 6, reply.body.find("\n\n", at) - at - 6);
    events.push_back(data == "[DONE]" ? Json("[DONE]") : Json::parse(data, nullptr, false));
  }
  return events;
}

}  // namespace cadre
