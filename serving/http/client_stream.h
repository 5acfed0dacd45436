// The bytes between a client and this server: plain TCP, or TLS over it. Private to the HTTP layer
// (it needs Boost's headers).
//
// Every method runs on the executor of the socket, a strand. One read and one write may be under
// way at a time; Cancel ends both, and after a cancelled write, or a cancelled read of a part of a
// message, only Close makes sense.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <memory>
#include <string_view>

#include "serving/http/tls.h"

namespace cadre {

class ClientStream {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  using Error = boost::system::error_code;
  template <typename T>
  using Task = boost::asio::awaitable<T>;
  struct Result {
    Error error;
    size_t size = 0;
  };

  // `tls`: null for plain TCP.
  ClientStream(Socket socket, std::shared_ptr<TlsContext> tls);

  // Of TLS; nothing to do for plain TCP. A client that speaks plain HTTP instead is told so.
  Task<Error> Handshake();
  // At least one byte, or an error; the end of the client's input is boost::asio::error::eof, then
  // and ever after.
  Task<Result> ReadSome(boost::asio::mutable_buffer room);
  // All of them, or an error.
  Task<Error> Write(std::string_view bytes);
  // Tells the client that nothing more comes, as far as that needs no answer of the client.
  Task<void> EndOutput();
  void Cancel();
  void Close();

  Socket& socket() { return socket_; }
  bool secure() const { return tls_ != nullptr; }
  // Of what the client and the server said, without TLS's own.
  uint64_t bytes_read() const { return bytes_read_; }
  uint64_t bytes_written() const { return bytes_written_; }

 private:
  Task<void> RefusePlainHttp();

  Socket socket_;
  const std::shared_ptr<TlsContext> context_;  // outlives tls_
  std::unique_ptr<boost::asio::ssl::stream<Socket&>> tls_;
  bool established_ = false;
  bool ended_ = false;  // the client's input
  uint64_t bytes_read_ = 0;
  uint64_t bytes_written_ = 0;
};

}  // namespace cadre
