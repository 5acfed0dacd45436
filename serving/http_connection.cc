#include "serving/http_connection.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>
#include <chrono>

namespace cadre {
namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

namespace {

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
constexpr size_t kMaxHeaderBytes = 16 << 10;

std::chrono::steady_clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(seconds));
}

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

void HttpShared::Begin() {
  std::lock_guard lock(mutex);
  ++in_flight;
}

void HttpShared::End() {
  std::lock_guard lock(mutex);
  if (--in_flight == 0) idle.notify_all();
}

bool BodyShare::GrowTo(size_t bytes) {
  const size_t more = bytes - bytes_;
  if (shared_->body_bytes.fetch_add(more) + more > shared_->options.max_total_request_bytes) {
    shared_->body_bytes.fetch_sub(more);
    return false;
  }
  bytes_ = bytes;
  return true;
}

void BodyShare::Release() { shared_->body_bytes.fetch_sub(std::exchange(bytes_, 0)); }

HttpConnection::HttpConnection(Socket socket, HttpShared* shared)
    : socket_(std::move(socket)),
      shared_(shared),
      deadline_(socket_.get_executor()),
      news_(socket_.get_executor()),
      body_share_(shared) {
  shared_->connections.fetch_add(1);
}

HttpConnection::~HttpConnection() { shared_->connections.fetch_sub(1); }

// A deadline cancels the socket's operations; the coroutine then sees expired_.
void HttpConnection::StartDeadline(double seconds) {
  expired_ = false;
  uint64_t round = ++deadline_round_;
  deadline_.expires_after(Seconds(seconds));
  deadline_.async_wait([self = shared_from_this(), round](error_code error) {
    if (error || round != self->deadline_round_) return;
    self->expired_ = true;
    error_code ignored;
    self->socket_.cancel(ignored);
  });
}

void HttpConnection::StopDeadline() {
  ++deadline_round_;
  deadline_.cancel();
}

HttpConnection::Task<void> HttpConnection::Run() {
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  bool open = true;
  while (open) {
    Request request;
    open = co_await ReadRequest(&request);
    if (open) open = co_await Handle(&request);
    body_share_.Release();
  }
  StopDeadline();
  socket_.shutdown(Socket::shutdown_both, ignored);
  socket_.close(ignored);
}

// Header and body. not_enough_memory: the bodies of all requests are too much together.
HttpConnection::Task<error_code> HttpConnection::ReadMessage(Parser* parser) {
  StartDeadline(shared_->options.read_timeout_s);
  auto [header_error, header_size] =
      co_await http::async_read_header(socket_, buffer_, *parser, kTuple);
  error_code error = header_error;
  if (!error && parser->get()[http::field::expect] == "100-continue") {
    bool written = co_await Write("HTTP/1.1 100 Continue\r\n\r\n");
    if (!written) error = asio::error::broken_pipe;
  }
  if (!error) StartDeadline(shared_->options.read_timeout_s);
  parser->eager(true);
  // Counted as it comes: who only announces a large body takes no room from the others.
  while (!error && !parser->is_done()) {
    auto [body_error, size] = co_await http::async_read_some(socket_, buffer_, *parser, kTuple);
    error = body_error;
    if (!error && !body_share_.GrowTo(parser->get().body().size())) {
      std::string().swap(parser->get().body());
      body_share_.Release();
      error = make_error_code(boost::system::errc::not_enough_memory);
    }
  }
  StopDeadline();
  co_return error;
}

// False: the connection is to be closed; the client has been told why where that makes sense.
HttpConnection::Task<bool> HttpConnection::ReadRequest(Request* request) {
  const HttpServerOptions& options = shared_->options;
  route_ = "other";
  cors_.clear();
  if (buffer_.size() == 0) {
    StartDeadline(options.keep_alive_timeout_s);
    auto space = buffer_.prepare(4096);
    auto [error, size] = co_await socket_.async_read_some(space, kTuple);
    StopDeadline();
    if (error) co_return false;
    buffer_.commit(size);
  }
  http::request_parser<http::string_body> parser;
  parser.header_limit(kMaxHeaderBytes);
  parser.body_limit(options.max_request_bytes);
  error_code error = co_await ReadMessage(&parser);
  cors_ = CorsHeaders(options.cors_allowed_origins, View(parser.get()[http::field::origin]));
  version_ = 11;
  keep_alive_ = false;
  if (expired_) co_return co_await RefuseRead(408, "the request did not arrive in time");
  if (error == http::error::body_limit) {
    co_return co_await RefuseRead(
        413, fmt::format("the body is larger than {} bytes", options.max_request_bytes));
  }
  if (error == boost::system::errc::not_enough_memory) {
    co_return co_await RefuseRead(
        503, fmt::format("the bodies of the requests under way are over {} bytes together",
                         options.max_total_request_bytes));
  }
  if (error == http::error::header_limit) {
    co_return co_await RefuseRead(431, "the header is larger than 16 KiB");
  }
  if (error == http::error::end_of_stream || error == http::error::partial_message) {
    co_return false;
  }
  if (error.category() == make_error_code(http::error::end_of_stream).category() && error) {
    co_return co_await RefuseRead(400, "malformed HTTP: " + error.message());
  }
  if (error) co_return false;
  *request = parser.release();
  version_ = request->version();
  keep_alive_ = request->keep_alive();
  co_return true;
}

HttpConnection::Task<bool> HttpConnection::RefuseRead(int status, std::string message) {
  ApiError error{status, std::move(message), "", ""};
  (void)co_await RespondError(std::move(error));
  // Closing with unread input would reset the connection before the client reads the answer.
  co_await Discard();
  co_return false;
}

HttpConnection::Task<void> HttpConnection::Discard() {
  constexpr size_t kMaxDiscarded = size_t{64} << 20;
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  StartDeadline(2);
  char scratch[16384];
  for (size_t total = 0; total < kMaxDiscarded && !expired_;) {
    auto [error, size] = co_await socket_.async_read_some(asio::buffer(scratch), kTuple);
    if (error) break;
    total += size;
  }
  StopDeadline();
}

HttpConnection::Task<bool> HttpConnection::Write(std::string_view bytes) {
  StartDeadline(shared_->options.write_timeout_s);
  auto [error, size] =
      co_await asio::async_write(socket_, asio::buffer(bytes.data(), bytes.size()), kTuple);
  StopDeadline();
  co_return !error;
}

HttpConnection::Task<bool> HttpConnection::Respond(int status, std::string body,
                                                   std::string_view content_type) {
  if (shared_->draining) keep_alive_ = false;
  shared_->service->metrics().HttpResponse(route_, status);
  std::string_view reason = http::obsolete_reason(static_cast<http::status>(status));
  std::string message = fmt::format(
      "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n{}{}\r\n",
      status, reason, content_type, body.size(), keep_alive_ ? "keep-alive" : "close",
      status == 429 || status == 503 ? "Retry-After: 1\r\n" : "", cors_);
  message += body;
  bool written = co_await Write(message);
  co_return written&& keep_alive_;
}

// What a browser asks before a page of another origin may send its request; it brings no key.
HttpConnection::Task<bool> HttpConnection::AnswerPreflight(const Request& request,
                                                           const RouteMatch& route) {
  if (!cors_.empty()) {
    const std::string_view wanted = View(request[http::field::access_control_request_headers]);
    cors_ += fmt::format(
        "Access-Control-Allow-Methods: GET, POST\r\nAccess-Control-Allow-Headers: {}\r\n"
        "Access-Control-Max-Age: 600\r\n",
        wanted.empty() ? "*" : wanted);
  }
  cors_ += fmt::format("Allow: {}, OPTIONS\r\n", route.allowed_method);
  co_return co_await Respond(200, "", "text/plain");
}

HttpConnection::Task<bool> HttpConnection::RespondError(ApiError error) {
  std::string body = error.Body();
  co_return co_await Respond(error.status, std::move(body), "application/json");
}

HttpConnection::Task<bool> HttpConnection::Handle(Request* message) {
  const Request& request = *message;
  RouteMatch route = FindRoute(View(request.method_string()), View(request.target()));
  route_ = route.label;
  if (route.status == 405 && request.method() == http::verb::options) {
    co_return co_await AnswerPreflight(request, route);
  }
  ApiError error{route.status, "", "", ""};
  if (route.status == 404) error.message = "there is no such path";
  if (route.status == 405) error.message = fmt::format("use {} here", route.allowed_method);
  bool known = route.status == 200 &&
               (route.is_public ||
                KeyAccepted(shared_->options.api_keys, View(request[http::field::authorization]),
                            View(request["X-Api-Key"])));
  if (route.status == 200 && !known) {
    error = {401, "a valid API key is needed", "", "invalid_api_key"};
  }
  if (!known) co_return co_await RespondError(std::move(error));
  constexpr std::string_view kJson = "application/json";
  switch (route.endpoint) {
    case Endpoint::kHealth:
      co_return co_await Respond(200, R"({"status":"ok"})", kJson);
    case Endpoint::kReady: {
      EngineHealth health = shared_->service->Health();
      bool draining = shared_->draining;
      if (health.ready && !draining) {
        co_return co_await Respond(200, R"({"status":"ready"})", kJson);
      }
      error = {503, draining ? "the server is draining" : health.reason, "", "not_ready"};
      co_return co_await RespondError(std::move(error));
    }
    case Endpoint::kMetrics: {
      std::string text = shared_->service->MetricsText(shared_->draining);
      co_return co_await Respond(200, std::move(text), "text/plain; version=0.0.4; charset=utf-8");
    }
    case Endpoint::kModels: {
      std::string models = shared_->service->Models();
      co_return co_await Respond(200, std::move(models), kJson);
    }
    case Endpoint::kChat:
    case Endpoint::kCompletions:
      break;
  }
  shared_->Begin();
  bool open = co_await Generate(std::move(message->body()), route.endpoint == Endpoint::kChat);
  shared_->End();
  co_return open;
}

}  // namespace cadre
