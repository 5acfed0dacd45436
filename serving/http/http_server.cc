#include "serving/http/http_server.h"

#include <spdlog/logger.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <optional>
#include <set>
#include <thread>

#include "serving/http/http_connection.h"

namespace cadre {
namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;

namespace {

struct Acceptor {
  tcp::acceptor socket;
  HttpListener* listener;
  uint16_t port() const { return socket.local_endpoint().port(); }
};

}  // namespace

struct HttpServer::Impl {
  // Destroyed last to first: connections (in the context) before what they use.
  HttpShared shared;
  std::optional<OpenAiService> service;
  std::vector<std::unique_ptr<HttpListener>> listeners;
  std::optional<asio::io_context> context;
  std::optional<FrontPool> pool;
  std::vector<Acceptor> acceptors;  // the clients', the administration's
  std::vector<std::thread> threads;

  absl::Status Listen(const std::string& host, uint16_t port, Bind bind, int max_connections);
  absl::Status ListenAll();
  absl::Status LoadFiles();
  absl::Status LoadCertificate();
  absl::Status OpenLog();
  void Accept();
  asio::awaitable<void> Accept(Acceptor* acceptor);
  void Stop();
};

namespace {

absl::Status CheckKeys(const std::vector<std::string>& keys, const char* field) {
  if (std::ranges::all_of(keys, IsKey)) return absl::OkStatus();
  return InvalidArgument("{}: a key has visible ASCII characters alone, and at least one", field);
}

absl::Status CheckBind(const HttpServerOptions& options, const char* field, const std::string& host,
                       bool has_keys) {
  error_code error;
  const auto address = asio::ip::make_address(host, error);
  if (error)
    return InvalidArgument(
        "{} '{}': not an IP address; 127.0.0.1 is for this machine alone, 0.0.0.0 for all of "
        "its addresses",
        field, host);
  if (address.is_loopback() || has_keys || options.allow_unauthenticated) return absl::OkStatus();
  const std::string prefix = std::string(field).substr(0, std::string_view(field).find("host"));
  return InvalidArgument(
      "{} {}: other machines reach it, so set {}api_key_file (or allow_unauthenticated, where "
      "something else guards it)",
      field, host, prefix);
}

}  // namespace

absl::Status CheckHttpOptions(const HttpServerOptions& options) {
  if (options.service.served_model_names.empty()) {
    return InvalidArgument("served_model_name: at least one name is needed");
  }
  std::set<std::string> names;
  for (const std::string& name : options.service.served_model_names) {
    if (!name.empty() && names.insert(name).second) continue;
    return InvalidArgument("served_model_name: '{}', a name is not empty and comes once", name);
  }
  if (options.max_total_request_bytes < options.max_request_bytes) {
    return InvalidArgument("max_total_request_bytes: {}, less than max_request_bytes, {}",
                           options.max_total_request_bytes, options.max_request_bytes);
  }
  if (options.tls_certificate_file.empty() != options.tls_key_file.empty()) {
    return InvalidArgument("tls_certificate_file and tls_key_file: both are needed, or none");
  }
  CADRE_RETURN_IF_ERROR(CheckKeys(options.api_keys, "api_key"));
  CADRE_RETURN_IF_ERROR(CheckKeys(options.admin_api_keys, "admin_api_key"));
  CADRE_RETURN_IF_ERROR(CheckBind(options, "host", options.host, !options.api_keys.empty()));
  if (options.admin_port < 0) return absl::OkStatus();
  const bool one_place = options.admin_port == options.port && options.admin_host == options.host;
  if (options.admin_port != 0 && one_place) {
    return InvalidArgument("admin_port: {}, which is port", options.admin_port);
  }
  return CheckBind(options, "admin_host", options.admin_host, !options.admin_api_keys.empty());
}

absl::Status HttpServer::Impl::Listen(const std::string& host, uint16_t port, Bind bind,
                                      int max_connections) {
  error_code error;
  tcp::endpoint endpoint(asio::ip::make_address(host, error), port);
  tcp::acceptor socket(*context);
  if (!error) socket.open(endpoint.protocol(), error);
  if (!error) socket.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) socket.bind(endpoint, error);
  if (!error) socket.listen(asio::socket_base::max_listen_connections, error);
  if (error) return Unavailable("cannot listen on {}:{}: {}", host, port, error.message());
  const bool tls = !shared.options.tls_certificate_file.empty();
  const bool secure = tls && (bind != Bind::kAdmin || !endpoint.address().is_loopback());
  listeners.push_back(std::make_unique<HttpListener>(bind, secure, max_connections));
  acceptors.push_back({std::move(socket), listeners.back().get()});
  return absl::OkStatus();
}

// A certificate that cannot be taken keeps no log from its new file.
absl::Status HttpServer::Impl::LoadFiles() {
  const absl::Status log = OpenLog();
  CADRE_RETURN_IF_ERROR(LoadCertificate());
  return log;
}

absl::Status HttpServer::Impl::LoadCertificate() {
  const HttpServerOptions& options = shared.options;
  if (options.tls_certificate_file.empty()) return absl::OkStatus();
  CADRE_ASSIGN_OR_RETURN(std::shared_ptr<TlsContext> tls,
                         LoadTls(options.tls_certificate_file, options.tls_key_file));
  shared.tls.Replace(std::move(tls));
  return absl::OkStatus();
}

absl::Status HttpServer::Impl::OpenLog() {
  const HttpServerOptions& options = shared.options;
  if (options.access_log_file.empty()) return absl::OkStatus();
  if (shared.access_log) return shared.access_log->Reopen();
  CADRE_ASSIGN_OR_RETURN(shared.access_log,
                         AccessLog::Open(options.access_log_file, options.service.log));
  return absl::OkStatus();
}

absl::Status HttpServer::Impl::ListenAll() {
  constexpr int kAdminConnections = 64;  // of their own: who fills the server hides nothing
  const HttpServerOptions& options = shared.options;
  const bool admin = options.admin_port >= 0;
  CADRE_RETURN_IF_ERROR(Listen(options.host, options.port, admin ? Bind::kClients : Bind::kAll,
                               options.max_connections));
  if (!admin) return absl::OkStatus();
  return Listen(options.admin_host, static_cast<uint16_t>(options.admin_port), Bind::kAdmin,
                kAdminConnections);
}

asio::awaitable<void> HttpServer::Impl::Accept(Acceptor* acceptor) {
  constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
  HttpListener& listener = *acceptor->listener;
  spdlog::logger* const log = shared.options.service.log.get();
  asio::steady_timer pause(*context);
  while (acceptor->socket.is_open()) {
    tcp::socket socket(asio::make_strand(*context));
    auto [error] = co_await acceptor->socket.async_accept(socket, kTuple);
    if (error == asio::error::operation_aborted) co_return;
    if (error) {
      // Out of descriptors, mostly: those in use must end first.
      if (log != nullptr) log->warn("accept: {}", error.message());
      pause.expires_after(std::chrono::milliseconds(100));
      co_await pause.async_wait(kTuple);
      continue;
    }
    if (listener.connections >= listener.max_connections) continue;  // closes it
    auto executor = socket.get_executor();
    auto connection = std::make_shared<HttpConnection>(std::move(socket), &listener, &shared);
    asio::co_spawn(
        executor, [connection]() -> asio::awaitable<void> { return connection->Run(); },
        [connection, log](std::exception_ptr failure) {
          if (failure && log != nullptr) log->error("a connection ended by an exception");
        });
  }
}

void HttpServer::Impl::Stop() {
  shared.leaving = shared.draining = true;
  if (!context) return;
  context->stop();
  for (std::thread& thread : threads) thread.join();
  threads.clear();
  pool.reset();  // its last jobs may still wake connections
  if (service) service->Stop();
  acceptors.clear();
  context.reset();  // ends the connections, which cancel their sequences
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() { Stop(); }

void HttpServer::Impl::Accept() {
  for (Acceptor& acceptor : acceptors) {
    asio::co_spawn(
        *context, [this, &acceptor] { return Accept(&acceptor); }, asio::detached);
  }
  for (int i = 0; i < std::max(shared.options.io_threads, 1); ++i) {
    threads.emplace_back([this] { context->run(); });
  }
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options,
                                                              const ServingDeps& deps) {
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<HttpServer> server, Listen(std::move(options)));
  server->Serve(deps);
  return server;
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Listen(HttpServerOptions options) {
  CADRE_RETURN_IF_ERROR(CheckHttpOptions(options));
  auto impl = std::make_unique<Impl>();
  impl->shared.options = std::move(options);
  const HttpServerOptions& kept = impl->shared.options;
  impl->context.emplace();
  impl->shared.client_keys.Replace(ApiKeys(kept.api_keys));
  impl->shared.admin_keys.Replace(ApiKeys(kept.admin_api_keys));
  CADRE_RETURN_IF_ERROR(impl->LoadFiles());
  CADRE_RETURN_IF_ERROR(impl->ListenAll());
  impl->Accept();
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

void HttpServer::Serve(const ServingDeps& deps) {
  HttpShared& shared = impl_->shared;
  impl_->service.emplace(deps, shared.options.service);
  impl_->pool.emplace(shared.options.front_threads, shared.options.max_front_queue);
  shared.service = &*impl_->service;
  shared.pool = &*impl_->pool;
  shared.serving = true;
}

uint16_t HttpServer::port() const { return impl_->acceptors.front().port(); }

uint16_t HttpServer::admin_port() const {
  return impl_->acceptors.size() > 1 ? impl_->acceptors.back().port() : 0;
}

absl::Status HttpServer::ReplaceKeys(const std::vector<std::string>& api_keys,
                                     const std::vector<std::string>& admin_api_keys) {
  HttpShared& shared = impl_->shared;
  HttpServerOptions changed = shared.options;
  changed.api_keys = api_keys;
  changed.admin_api_keys = admin_api_keys;
  CADRE_RETURN_IF_ERROR(CheckHttpOptions(changed));
  shared.client_keys.Replace(ApiKeys(api_keys));
  shared.admin_keys.Replace(ApiKeys(admin_api_keys));
  return absl::OkStatus();
}

absl::Status HttpServer::ReloadFiles() { return impl_->LoadFiles(); }

void HttpServer::Leave() { impl_->shared.leaving = true; }

bool HttpServer::Drain(double timeout_s) {
  Leave();
  HttpShared& shared = impl_->shared;
  std::unique_lock lock(shared.mutex);
  shared.draining = true;
  return shared.changed.wait_for(lock, std::chrono::duration<double>(timeout_s),
                                 [&] { return shared.in_flight == 0; });
}

void HttpServer::Stop() { impl_->Stop(); }

}  // namespace cadre
