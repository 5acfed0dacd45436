#include "serving/http/client_stream.h"

#include <openssl/sslerr.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <utility>

namespace cadre {
namespace asio = boost::asio;

namespace {

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

}  // namespace

ClientStream::ClientStream(Socket socket, std::shared_ptr<TlsContext> tls)
    : socket_(std::move(socket)), context_(std::move(tls)) {
  if (context_) tls_ = std::make_unique<asio::ssl::stream<Socket&>>(socket_, context_->context);
}

ClientStream::Task<ClientStream::Error> ClientStream::Handshake() {
  if (!tls_) co_return Error();
  auto [error] = co_await tls_->async_handshake(asio::ssl::stream_base::server, kTuple);
  established_ = !error;
  const bool plain =
      error.category() == asio::error::get_ssl_category() &&
      ERR_GET_REASON(static_cast<unsigned long>(error.value())) == SSL_R_HTTP_REQUEST;
  if (plain) co_await RefusePlainHttp();
  co_return error;
}

ClientStream::Task<void> ClientStream::RefusePlainHttp() {
  static constexpr std::string_view kAnswer =
      "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 22\r\n"
      "Connection: close\r\n\r\nThis port speaks TLS.\n";
  Error ignored;
  (void)co_await asio::async_write(socket_, asio::buffer(kAnswer.data(), kAnswer.size()), kTuple);
  socket_.shutdown(Socket::shutdown_send, ignored);
  // Closing with unread input would reset the connection before the client reads the answer.
  char scratch[4096];
  for (size_t total = 0; total < (1 << 16);) {
    auto [error, size] = co_await socket_.async_read_some(asio::buffer(scratch), kTuple);
    if (error) break;
    total += size;
  }
}

ClientStream::Task<ClientStream::Result> ClientStream::ReadSome(asio::mutable_buffer room) {
  Result result;
  // The system tells an end once: who has been told waits for an event that does not come again.
  if (ended_) {
    result.error = asio::error::eof;
    co_return result;
  }
  if (tls_) {
    std::tie(result.error, result.size) = co_await tls_->async_read_some(room, kTuple);
    // Many clients end without TLS's own goodbye; HTTP says itself where a message ends.
    if (result.error == asio::ssl::error::stream_truncated) result.error = asio::error::eof;
  } else {
    std::tie(result.error, result.size) = co_await socket_.async_read_some(room, kTuple);
  }
  ended_ = result.error == asio::error::eof;
  bytes_read_ += result.size;
  co_return result;
}

ClientStream::Task<ClientStream::Error> ClientStream::Write(std::string_view bytes) {
  const auto buffer = asio::buffer(bytes.data(), bytes.size());
  Result result;
  if (tls_) {
    std::tie(result.error, result.size) = co_await asio::async_write(*tls_, buffer, kTuple);
  } else {
    std::tie(result.error, result.size) = co_await asio::async_write(socket_, buffer, kTuple);
  }
  bytes_written_ += result.size;
  if (result.error) established_ = false;
  co_return result.error;
}

ClientStream::Task<void> ClientStream::EndOutput() {
  Error ignored;
  if (!tls_) {
    socket_.shutdown(Socket::shutdown_send, ignored);
    co_return;
  }
  if (std::exchange(established_, false)) (void)co_await tls_->async_shutdown(kTuple);
}

void ClientStream::Cancel() {
  Error ignored;
  socket_.cancel(ignored);
}

void ClientStream::Close() {
  Error ignored;
  socket_.shutdown(Socket::shutdown_both, ignored);
  socket_.close(ignored);
}

}  // namespace cadre
