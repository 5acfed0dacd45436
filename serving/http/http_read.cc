// Requests come in: header and body within their deadlines and bounds, and what is told to a client
// whose request is none.
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/error.hpp>
#include <chrono>

#include "serving/http/http_connection.h"

namespace cadre {
namespace asio = boost::asio;
namespace http = boost::beast::http;

namespace {

constexpr size_t kMaxHeaderBytes = 16 << 10;
// Of what is read and not yet parsed: a chunk's size line, say, that does not end.
constexpr size_t kMaxUnparsedBytes = 64 << 10;
constexpr size_t kHeaderPiece = 4 << 10, kBodyPiece = 32 << 10;
// A body may take a second longer for each of these, so that large ones come over slow links, and
// one that trickles does not live on.
constexpr double kBytesPerSecond = 64 << 10;

bool NeedsMore(boost::system::error_code* error) {
  if (*error != http::error::need_more) return false;
  *error = {};
  return true;
}

}  // namespace

// A deadline cancels the socket's operations; the coroutine then sees expired_.
void HttpConnection::StartDeadline(double seconds) {
  expired_ = false;
  uint64_t round = ++deadline_round_;
  deadline_.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(seconds)));
  deadline_.async_wait([weak = weak_from_this(), round](Error error) {
    auto self = weak.lock();
    if (error || self == nullptr || round != self->deadline_round_) return;
    self->expired_ = true;
    self->stream_.Cancel();
  });
}

void HttpConnection::StopDeadline() {
  ++deadline_round_;
  deadline_.cancel();
}

// Reads at most so many bytes more.
HttpConnection::Task<HttpConnection::Error> HttpConnection::Fill(size_t bytes) {
  if (buffer_.size() >= kMaxUnparsedBytes) co_return make_error_code(http::error::buffer_overflow);
  ClientStream::Result read = co_await stream_.ReadSome(buffer_.prepare(bytes));
  buffer_.commit(read.size);
  co_return read.error;
}

HttpConnection::Task<bool> HttpConnection::ReadHeader(Parser* parser) {
  const HttpServerOptions& options = shared_->options;
  begun_ = false;
  if (buffer_.size() == 0) {
    buffer_.shrink_to_fit();  // idle connections hold little
    StartDeadline(options.keep_alive_timeout_s);
    Error error = co_await Fill(kHeaderPiece);
    StopDeadline();
    if (error) co_return false;
  }
  parser->header_limit(kMaxHeaderBytes);
  parser->body_limit(options.max_request_bytes);
  StartDeadline(options.read_timeout_s);
  began_ = std::chrono::steady_clock::now();
  Error error = co_await ParseHeader(parser);
  StopDeadline();
  header_read_ = std::chrono::steady_clock::now();
  Begin(parser->get());
  if (error || expired_) co_return co_await RefuseRead(error);
  co_return true;
}

HttpConnection::Task<HttpConnection::Error> HttpConnection::ParseHeader(Parser* parser) {
  Error error;
  while (true) {
    if (buffer_.size() > 0) {
      buffer_.consume(parser->put(buffer_.data(), error));
      NeedsMore(&error);
      if (error || parser->is_header_done()) co_return error;
    }
    Error read = co_await Fill(kHeaderPiece);
    if (read == asio::error::eof) co_return make_error_code(http::error::partial_message);
    if (read) co_return read;
  }
}

HttpConnection::Task<bool> HttpConnection::ReadBody(Parser* parser) {
  if (parser->get()[http::field::expect] == "100-continue") {
    bool written = co_await Write("HTTP/1.1 100 Continue\r\n\r\n");
    if (!written) co_return false;
  }
  Error error = co_await ParseBody(parser);
  StopDeadline();
  if (error || expired_) co_return co_await RefuseRead(error);
  co_return true;
}

// Bytes count in the sum of all bodies as they come: who only announces a large body takes no room
// from the others.
HttpConnection::Task<HttpConnection::Error> HttpConnection::ParseBody(Parser* parser) {
  const auto began = std::chrono::steady_clock::now();
  const double allowed = shared_->options.read_timeout_s;
  uint64_t counted = stream_.bytes_read();  // bytes that have moved the deadline
  const uint64_t first = counted;
  StartDeadline(allowed);
  parser->eager(true);
  Error error;
  while (!parser->is_done()) {
    size_t used = 0;
    if (buffer_.size() > 0) used = parser->put(buffer_.data(), error);
    buffer_.consume(used);
    const bool starved = NeedsMore(&error) || used == 0;
    if (error) co_return error;
    if (!body_share_.GrowTo(parser->get().body().size())) {
      std::string().swap(parser->get().body());
      body_share_.Release();
      co_return make_error_code(boost::system::errc::not_enough_memory);
    }
    if (parser->is_done()) break;
    if (!starved && buffer_.size() > 0) continue;
    error = co_await Fill(kBodyPiece);
    if (error == asio::error::eof) co_return make_error_code(http::error::partial_message);
    if (error) co_return error;
    if (stream_.bytes_read() - counted < kBytesPerSecond) continue;
    counted = stream_.bytes_read();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - began;
    StartDeadline(allowed + static_cast<double>(counted - first) / kBytesPerSecond - taken.count());
  }
  co_return error;
}

// Nothing where nobody would read it.
std::optional<ApiError> HttpConnection::ReadError(Error error) const {
  const HttpServerOptions& options = shared_->options;
  auto told = [](int status, std::string message) {
    return ApiError{status, std::move(message), "", ""};
  };
  if (expired_) return told(408, "the request did not arrive in time");
  if (error == http::error::body_limit) {
    return told(413, fmt::format("the body is larger than {} bytes", options.max_request_bytes));
  }
  if (error == boost::system::errc::not_enough_memory) {
    return told(503, fmt::format("the bodies of the requests under way are over {} bytes together",
                                 options.max_total_request_bytes));
  }
  if (error == http::error::header_limit) return told(431, "the header is larger than 16 KiB");
  if (error == http::error::end_of_stream || error == http::error::partial_message) return {};
  if (error.category() != make_error_code(http::error::end_of_stream).category()) return {};
  return told(400, "malformed HTTP: " + error.message());
}

HttpConnection::Task<bool> HttpConnection::RefuseRead(Error error) {
  keep_alive_ = false;
  std::optional<ApiError> told = ReadError(error);
  if (!told) co_return false;
  (void)co_await RespondError(*std::move(told));
  co_await Discard();
  co_return false;
}

// Closing with unread input would reset the connection before the client reads the answer.
HttpConnection::Task<void> HttpConnection::Discard() {
  constexpr size_t kMaxDiscarded = size_t{64} << 20;
  StartDeadline(2);
  if (!stream_.secure()) co_await stream_.EndOutput();
  char scratch[16384];
  for (size_t total = 0; total < kMaxDiscarded && !expired_;) {
    ClientStream::Result read = co_await stream_.ReadSome(asio::buffer(scratch));
    if (read.error) break;
    total += read.size;
  }
  StopDeadline();
}

}  // namespace cadre
