#include "serving/http/http_connection.h"

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

HttpConnection::HttpConnection(Socket socket, HttpListener* listener, HttpShared* shared)
    : socket_(std::move(socket)),
      listener_(listener),
      shared_(shared),
      deadline_(socket_.get_executor()),
      news_(socket_.get_executor()),
      body_share_(shared) {
  listener_->connections.fetch_add(1);
}

HttpConnection::~HttpConnection() { listener_->connections.fetch_sub(1); }

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
    Parser parser;
    open = co_await ReadHeader(&parser);
    if (open) open = co_await Handle(&parser);
    body_share_.Release();
  }
  StopDeadline();
  socket_.shutdown(Socket::shutdown_both, ignored);
  socket_.close(ignored);
}

// False: the connection is to be closed; the client has been told why where that makes sense.
HttpConnection::Task<bool> HttpConnection::ReadHeader(Parser* parser) {
  const HttpServerOptions& options = shared_->options;
  route_ = "other";
  endpoint_ = nullptr;
  cors_.clear();
  if (buffer_.size() == 0) {
    StartDeadline(options.keep_alive_timeout_s);
    auto space = buffer_.prepare(4096);
    auto [error, size] = co_await socket_.async_read_some(space, kTuple);
    StopDeadline();
    if (error) co_return false;
    buffer_.commit(size);
  }
  parser->header_limit(kMaxHeaderBytes);
  parser->body_limit(options.max_request_bytes);
  StartDeadline(options.read_timeout_s);
  auto [error, size] = co_await http::async_read_header(socket_, buffer_, *parser, kTuple);
  StopDeadline();
  const Request& request = parser->get();
  cors_ = CorsHeaders(options.cors_allowed_origins, View(request[http::field::origin]));
  if (error || expired_) co_return co_await RefuseRead(error);
  version_ = request.version();
  keep_alive_ = request.keep_alive();
  co_return true;
}

// False as with ReadHeader.
HttpConnection::Task<bool> HttpConnection::ReadBody(Parser* parser) {
  error_code error;
  if (parser->get()[http::field::expect] == "100-continue") {
    bool written = co_await Write("HTTP/1.1 100 Continue\r\n\r\n");
    if (!written) co_return false;
  }
  StartDeadline(shared_->options.read_timeout_s);
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
  if (error || expired_) co_return co_await RefuseRead(error);
  co_return true;
}

// Nothing where nobody would read it.
std::optional<ApiError> HttpConnection::ReadError(error_code error) const {
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

HttpConnection::Task<bool> HttpConnection::RefuseRead(error_code error) {
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
  const bool own_shape = endpoint_ != nullptr && endpoint_->error_body != nullptr;
  std::string body = own_shape ? endpoint_->error_body(error) : error.Body();
  co_return co_await Respond(error.status, std::move(body), "application/json");
}

std::optional<ApiError> HttpConnection::Refusal(const Request& request,
                                                const RouteMatch& route) const {
  if (route.status == 404) return ApiError{404, "there is no such path", "", ""};
  if (route.status == 405) {
    return ApiError{405, fmt::format("use {} here", route.allowed_method), "", ""};
  }
  if (KeyAccepted(request, route)) return std::nullopt;
  return ApiError{401, "a valid API key is needed", "", "invalid_api_key"};
}

bool HttpConnection::KeyAccepted(const Request& request, const RouteMatch& route) const {
  if (route.access == Access::kPublic) return true;
  if (route.endpoint == Endpoint::kModels && shared_->options.public_models) return true;
  const KeyRing& ring =
      listener_->bind == Bind::kAdmin ? shared_->admin_keys : shared_->client_keys;
  const std::shared_ptr<const ApiKeys> keys = ring.keys();
  return keys->empty() || keys->Find(GivenKey(View(request[http::field::authorization]),
                                              View(request["X-Api-Key"])));
}

// Only a request that is let in has its body read: strangers take no room from the others.
HttpConnection::Task<bool> HttpConnection::Handle(Parser* parser) {
  const Request& request = parser->get();
  RouteMatch route =
      FindRoute(View(request.method_string()), View(request.target()), listener_->bind);
  route_ = route.label;
  std::optional<ApiError> refusal = Refusal(request, route);
  if (route.status != 404) endpoint_ = FindApiEndpoint(route.endpoint);
  if (!refusal && endpoint_ != nullptr) {
    bool whole = co_await ReadBody(parser);
    if (!whole) co_return false;
    shared_->Begin();
    bool open = co_await Generate(std::move(parser->get().body()));
    shared_->End();
    co_return open;
  }
  const bool unread = !parser->is_done();
  if (unread) keep_alive_ = false;
  bool open = false;
  if (route.status == 405 && request.method() == http::verb::options) {
    open = co_await AnswerPreflight(request, route);
  } else if (refusal) {
    open = co_await RespondError(*std::move(refusal));
  } else {
    open = co_await AnswerState(route.endpoint);
  }
  if (unread) co_await Discard();
  co_return open;
}

HttpConnection::Task<bool> HttpConnection::AnswerState(Endpoint endpoint) {
  constexpr std::string_view kJson = "application/json";
  if (endpoint == Endpoint::kHealth) co_return co_await Respond(200, R"({"status":"ok"})", kJson);
  if (endpoint == Endpoint::kMetrics) {
    std::string text = shared_->service->MetricsText(shared_->draining);
    co_return co_await Respond(200, std::move(text), "text/plain; version=0.0.4; charset=utf-8");
  }
  if (endpoint == Endpoint::kModels) {
    std::string models = shared_->service->Models();
    co_return co_await Respond(200, std::move(models), kJson);
  }
  if (endpoint == Endpoint::kVersion) {
    std::string version = shared_->service->Version();
    co_return co_await Respond(200, std::move(version), kJson);
  }
  EngineHealth health = shared_->service->Health();
  bool draining = shared_->draining;
  if (health.ready && !draining) co_return co_await Respond(200, R"({"status":"ready"})", kJson);
  ApiError error{503, draining ? "the server is draining" : health.reason, "", "not_ready"};
  co_return co_await RespondError(std::move(error));
}

}  // namespace cadre
