#include "serving/http/http_connection.h"

#include <utility>

#include "serving/http/chat_page.h"

namespace cadre {
namespace asio = boost::asio;
namespace http = boost::beast::http;

namespace {

constexpr std::string_view kJson = "application/json";
// Of what is written and not yet taken, per connection: with thousands of slow readers the system's
// own bound of some MiB each would be too much.
constexpr int kSendBufferBytes = 128 << 10;
constexpr size_t kMostCopied = 1 << 20;  // of a body, so that it goes out with its header

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

// Of /v1/models/{id}.
std::string_view NameOf(std::string_view target) {
  return target.substr(0, target.find('?')).substr(std::string_view("/v1/models/").size());
}

std::string AllowHeader(std::string_view method) {
  return fmt::format("Allow: {}{}, OPTIONS\r\n", method, method == "GET" ? ", HEAD" : "");
}

// What follows the path.
std::string_view QueryOf(std::string_view target) {
  const size_t mark = target.find('?');
  return mark == std::string_view::npos ? std::string_view() : target.substr(mark + 1);
}

// What a proxy in front may read otherwise than we do would let one request hide in another.
std::optional<ApiError> Ambiguity(const HttpConnection::Request& request) {
  const size_t codings = request.count(http::field::transfer_encoding);
  if (codings > 0 &&
      (codings > 1 || !boost::beast::iequals(request[http::field::transfer_encoding], "chunked"))) {
    return ApiError{501, "a Transfer-Encoding other than one 'chunked' is not understood", "", ""};
  }
  const std::string_view length = View(request[http::field::content_length]);
  if (request.count(http::field::content_length) > 1 ||
      length.find_first_not_of("0123456789") != std::string_view::npos) {
    return ApiError{400, "malformed HTTP: the Content-Length is not one number", "", ""};
  }
  return std::nullopt;
}

}  // namespace

HttpConnection::HttpConnection(Socket socket, HttpListener* listener, HttpShared* shared)
    : stream_(std::move(socket), listener->secure ? shared->tls.context() : nullptr),
      listener_(listener),
      shared_(shared),
      deadline_(stream_.socket().get_executor()),
      news_(stream_.socket().get_executor()),
      body_share_(shared) {
  listener_->connections.fetch_add(1);
  shared_->connections.fetch_add(1);
}

HttpConnection::~HttpConnection() {
  Log();  // what was under way as the server stopped
  listener_->connections.fetch_sub(1);
  shared_->connections.fetch_sub(1);
}

HttpConnection::Task<void> HttpConnection::Run() {
  Error ignored;
  stream_.socket().set_option(asio::ip::tcp::no_delay(true), ignored);
  stream_.socket().set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
  StartDeadline(shared_->options.read_timeout_s);
  Error error = co_await stream_.Handshake();
  StopDeadline();
  bool open = !error && !expired_;
  ServingMetrics* metrics = shared_->metrics();
  if (!open && metrics != nullptr) metrics->HandshakeFailed();
  while (open) {
    Parser parser;
    open = co_await ReadHeader(&parser);
    if (open) open = co_await Handle(&parser);
    body_share_.Release();
    Log();
  }
  StartDeadline(2);
  co_await stream_.EndOutput();
  StopDeadline();
  stream_.Close();
}

// What the header says about the request as such, be it whole or not.
void HttpConnection::Begin(const Request& request) {
  begun_ = true;
  endpoint_ = nullptr;
  version_ = request.version();
  keep_alive_ = request.keep_alive();
  head_only_ = request.method() == http::verb::head;
  lines_ = listener_->bind == Bind::kAdmin ? ""
                                           : CorsHeaders(shared_->options.cors_allowed_origins,
                                                         View(request[http::field::origin]));
  record_ = {};
  if (request.method() != http::verb::unknown) record_.method = View(to_string(request.method()));
  call_ = {};
  const std::string_view id = View(request["X-Request-Id"]);
  call_.request_id = IsRequestId(id) ? std::string(id) : shared_->ids.RequestId();
  call_.trace = ParseTraceParent(View(request["traceparent"]));
  if (call_.trace) call_.trace->span_id = shared_->ids.SpanId();
}

HttpConnection::Task<bool> HttpConnection::Write(std::string_view bytes) {
  StartDeadline(shared_->options.write_timeout_s);
  Error error = co_await stream_.Write(bytes);
  StopDeadline();
  co_return !error;
}

// The lines that every answer has beside its own.
std::string HttpConnection::ExtraHeaders() const {
  std::string lines = fmt::format("X-Request-Id: {}\r\n", call_.request_id);
  if (call_.trace) lines += fmt::format("traceparent: {}\r\n", call_.trace->Header());
  return lines + lines_;
}

HttpConnection::Task<bool> HttpConnection::Respond(int status, std::string body,
                                                   std::string_view content_type) {
  if (shared_->leaving) keep_alive_ = false;
  if (ServingMetrics* metrics = shared_->metrics()) metrics->HttpResponse(record_.route, status);
  record_.status = status;
  std::string_view reason = http::obsolete_reason(static_cast<http::status>(status));
  std::string message = fmt::format(
      "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n{}{}\r\n",
      status, reason, content_type, body.size(), keep_alive_ ? "keep-alive" : "close",
      status == 429 || status == 503 ? fmt::format("Retry-After: {}\r\n", retry_after_) : "",
      ExtraHeaders());
  const bool apart = body.size() > kMostCopied;
  if (!head_only_ && !apart) message += body;
  bool written = co_await Write(message);
  if (written && !head_only_ && apart) written = co_await Write(body);
  co_return written&& keep_alive_;
}

// What a browser asks before a page of another origin may send its request; it brings no key.
HttpConnection::Task<bool> HttpConnection::AnswerPreflight(const Request& request,
                                                           const RouteMatch& route) {
  if (!lines_.empty()) {
    const std::string_view wanted = View(request[http::field::access_control_request_headers]);
    lines_ += fmt::format(
        "Access-Control-Allow-Methods: GET, POST\r\nAccess-Control-Allow-Headers: {}\r\n"
        "Access-Control-Max-Age: 600\r\n",
        wanted.empty() ? "*" : wanted);
  }
  lines_ += AllowHeader(route.allowed_method);
  co_return co_await Respond(200, "", "text/plain");
}

HttpConnection::Task<bool> HttpConnection::RespondError(ApiError error) {
  const bool own_shape = endpoint_ != nullptr && endpoint_->error_body != nullptr;
  std::string body = own_shape ? endpoint_->error_body(error) : error.Body();
  retry_after_ = error.retry_after;
  co_return co_await Respond(error.status, std::move(body), kJson);
}

std::optional<ApiError> HttpConnection::Refusal(const Request& request, const RouteMatch& route) {
  if (std::optional<ApiError> ambiguity = Ambiguity(request)) return ambiguity;
  // Any page can make its reader's browser send one: where no keys are set, nothing else tells them
  // from operators.
  if (listener_->bind == Bind::kAdmin && request.count(http::field::origin) > 0) {
    return ApiError{403, "administration is not for web pages: no Origin header is taken", "", ""};
  }
  const bool no_page = route.endpoint == Endpoint::kPage && !shared_->options.chat_page;
  if (route.status == 404 || no_page) return ApiError{404, "there is no such path", "", ""};
  if (route.status == 405) {
    return ApiError{405, fmt::format("use {} here", route.allowed_method), "", ""};
  }
  if (!KeyAccepted(request, route)) {
    return ApiError{401, "a valid API key is needed", "", "invalid_api_key"};
  }
  if (shared_->serving || route.endpoint == Endpoint::kHealth) return std::nullopt;
  return ApiError{503, "the model is being loaded", "", "not_ready"};
}

bool HttpConnection::KeyAccepted(const Request& request, const RouteMatch& route) {
  const KeyRing& ring =
      listener_->bind == Bind::kAdmin ? shared_->admin_keys : shared_->client_keys;
  const std::shared_ptr<const ApiKeys> keys = ring.keys();
  const std::optional<std::string> name =
      keys->Find(GivenKey(View(request[http::field::authorization]), View(request["X-Api-Key"])));
  call_.key = name.value_or("");
  const bool open = route.access == Access::kPublic || route.access == Access::kPage;
  if (name || open || keys->empty()) return true;
  return route.endpoint == Endpoint::kModels && shared_->options.public_models;
}

// Only a request that is let in has its body read: strangers take no room from the others.
HttpConnection::Task<bool> HttpConnection::Handle(Parser* parser) {
  const Request& request = parser->get();
  const std::string_view target = View(request.target());
  const RouteMatch route = FindRoute(View(request.method_string()), target, listener_->bind);
  record_.route = route.label;
  std::optional<ApiError> refusal = Refusal(request, route);
  if (route.status != 404) endpoint_ = FindApiEndpoint(route.endpoint);
  if (!refusal && endpoint_ != nullptr) co_return co_await HandleBody(parser);
  const bool unread = !parser->is_done() || Ambiguity(request);
  if (unread) keep_alive_ = false;
  bool open = false;
  const bool wrong_method = refusal && refusal->status == 405;
  if (wrong_method && request.method() == http::verb::options) {
    open = co_await AnswerPreflight(request, route);
  } else if (refusal) {
    if (wrong_method) lines_ += AllowHeader(route.allowed_method);
    open = co_await RespondError(*std::move(refusal));
  } else if (route.access == Access::kAdmin) {
    open = co_await Administer(route.endpoint, QueryOf(target));
  } else {
    open = co_await AnswerState(route.endpoint, target);
  }
  if (unread) co_await Discard();
  co_return open;
}

HttpConnection::Task<bool> HttpConnection::HandleBody(Parser* parser) {
  if (!shared_->TryBegin()) {
    keep_alive_ = false;
    ApiError error{503, "the server is draining", "", "unavailable"};
    (void)co_await RespondError(std::move(error));
    co_await Discard();
    co_return false;
  }
  bool open = co_await ReadBody(parser);
  if (open) open = co_await Generate(std::move(parser->get().body()));
  shared_->End();
  co_return open;
}

HttpConnection::Task<bool> HttpConnection::AnswerState(Endpoint endpoint, std::string_view target) {
  if (endpoint == Endpoint::kHealth) co_return co_await Respond(200, R"({"status":"ok"})", kJson);
  if (endpoint == Endpoint::kMetrics) {
    std::string text = shared_->service->MetricsText(shared_->State());
    co_return co_await Respond(200, std::move(text), "text/plain; version=0.0.4; charset=utf-8");
  }
  if (endpoint == Endpoint::kPage) {
    lines_ += ChatPageHeaders(ChatPageHtml());
    std::string page(ChatPageHtml());
    co_return co_await Respond(200, std::move(page), "text/html; charset=utf-8");
  }
  if (endpoint == Endpoint::kModels) {
    std::string models = shared_->service->Models();
    co_return co_await Respond(200, std::move(models), kJson);
  }
  if (endpoint == Endpoint::kModel) {
    const std::string_view name = NameOf(target);
    if (std::optional<ApiError> error = shared_->service->CheckModel(name)) {
      co_return co_await RespondError(*std::move(error));
    }
    std::string model = shared_->service->Model(name);
    co_return co_await Respond(200, std::move(model), kJson);
  }
  if (endpoint == Endpoint::kVersion) {
    std::string version = shared_->service->Version();
    co_return co_await Respond(200, std::move(version), kJson);
  }
  EngineHealth health = shared_->service->Health();
  bool leaving = shared_->leaving;
  if (health.ready && !leaving) co_return co_await Respond(200, R"({"status":"ready"})", kJson);
  ApiError error{503, leaving ? "the server is draining" : health.reason, "", "not_ready"};
  co_return co_await RespondError(std::move(error));
}

// Once for each request. Probes that went well are not worth a line every second.
void HttpConnection::Log() {
  const uint64_t in = stream_.bytes_read() - std::exchange(read_before_, stream_.bytes_read());
  const uint64_t out =
      stream_.bytes_written() - std::exchange(written_before_, stream_.bytes_written());
  const bool probe =
      record_.route == "/health" || record_.route == "/ready" || record_.route == "/metrics";
  if (!shared_->access_log || !std::exchange(begun_, false) || (probe && record_.status == 200))
    return;
  record_.bytes_in = in;
  record_.bytes_out = out;
  record_.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
  shared_->access_log->Write(call_, record_);
}

}  // namespace cadre
