// For the front's fuzz target and its test: a real server over TestEngine, and inputs that become
// what a client sends. Whatever that is, the server answers in HTTP, never with 500, and lives on.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "serving/http/http_server.h"
#include "serving/http/test_engine.h"
#include "serving/http/test_tokenizer.h"

namespace cadre {

class FuzzFront {
 public:
  FuzzFront() {
    tokenizer_ = Tokenizer::Parse("fuzz", TokenizerJson()).value();
    chat_ = ChatTemplate::Parse("{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}")
                .value();
    HttpServerOptions options{.max_request_bytes = 1 << 16, .max_total_request_bytes = 1 << 20};
    options.read_timeout_s = options.keep_alive_timeout_s = 5;
    options.service.served_model_names = {"tiny"};
    options.service.defaults.eos_token_ids = {kEnd};
    server_ = HttpServer::Start(options, {tokenizer_.get(), chat_.get(), &engine_}).value();
  }

  // The first byte says what becomes of the others, the second how they are cut into pieces.
  void Try(std::span<const uint8_t> input) const {
    if (input.size() < 2) return;
    const std::string_view rest(reinterpret_cast<const char*>(input.data()) + 2, input.size() - 2);
    const std::string answer = Exchange(Message(input[0] % 6, rest), size_t{1} + input[1]);
    CADRE_CHECK(answer.empty() || answer.starts_with("HTTP/1.1 "), "the answer is {}", answer);
    CADRE_CHECK(!answer.starts_with("HTTP/1.1 5") || answer.starts_with("HTTP/1.1 501"),
                "the answer is {}", answer.substr(0, 1000));
    if (!answer.empty()) return;  // it lives
    const std::string health = Exchange("GET /health HTTP/1.1\r\n\r\n", 1000);
    CADRE_CHECK(health.starts_with("HTTP/1.1 200"), "/health says {}", health);
  }

 private:
  static std::string Message(int kind, std::string_view rest) {
    auto post = [&](const char* path) {
      return fmt::format("POST {} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{}", path, rest.size(),
                         rest);
    };
    switch (kind) {
      case 0:
        return post("/v1/completions");
      case 1:
        return post("/v1/chat/completions");
      case 2:
        return fmt::format("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                           rest);
      case 3:
        return fmt::format("GET /v1/models HTTP/1.1\r\n{}\r\n\r\n", rest);
      case 4:
        return fmt::format("POST /v1/completions HTTP/1.1\r\n{}", rest);
      default:
        return std::string(rest);
    }
  }

  // Sends all, ends the input and reads to the end of the answer.
  std::string Exchange(std::string_view bytes, size_t piece) const {
    const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(server_->port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CADRE_CHECK(::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    // A few pieces are enough: the server may see them as one all the same.
    const int at_once = 1;
    ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof(at_once));
    piece = std::max(piece, bytes.size() / 16);
    while (!bytes.empty()) {
      const ssize_t sent =
          ::send(socket, bytes.data(), std::min(piece, bytes.size()), MSG_NOSIGNAL);
      if (sent <= 0) break;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    ::shutdown(socket, SHUT_WR);
    std::string answer;
    char chunk[4096];
    ssize_t size = 0;
    while ((size = ::recv(socket, chunk, sizeof(chunk), 0)) > 0) {
      answer.append(chunk, static_cast<size_t>(size));
    }
    ::close(socket);
    return answer;
  }

  TestEngine engine_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace cadre
