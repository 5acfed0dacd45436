#include "serving/http/http_server.h"

#include <spdlog/spdlog.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <optional>
#include <thread>

#include "serving/http/http_connection.h"

namespace cadre {
namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;

struct HttpServer::Impl {
  // Destroyed last to first: connections (in the context) before what they use.
  HttpShared shared;
  std::optional<OpenAiService> service;
  std::optional<asio::io_context> context;
  std::optional<FrontPool> pool;
  std::optional<tcp::acceptor> acceptor;
  uint16_t port = 0;
  std::vector<std::thread> threads;

  absl::Status Listen();
  asio::awaitable<void> Accept();
  void Stop();
};

absl::Status HttpServer::Impl::Listen() {
  const HttpServerOptions& options = shared.options;
  error_code error;
  auto address = asio::ip::make_address(options.host, error);
  if (error) return InvalidArgument("host '{}': not an IP address", options.host);
  tcp::endpoint endpoint(address, options.port);
  acceptor.emplace(*context);
  acceptor->open(endpoint.protocol(), error);
  if (!error) acceptor->set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor->bind(endpoint, error);
  if (!error) acceptor->listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    return Unavailable("cannot listen on {}:{}: {}", options.host, options.port, error.message());
  }
  port = acceptor->local_endpoint().port();
  return absl::OkStatus();
}

asio::awaitable<void> HttpServer::Impl::Accept() {
  constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
  asio::steady_timer pause(*context);
  while (acceptor->is_open()) {
    tcp::socket socket(asio::make_strand(*context));
    auto [error] = co_await acceptor->async_accept(socket, kTuple);
    if (error == asio::error::operation_aborted) co_return;
    if (error) {
      // Out of descriptors, mostly: those in use must end first.
      spdlog::warn("accept: {}", error.message());
      pause.expires_after(std::chrono::milliseconds(100));
      co_await pause.async_wait(kTuple);
      continue;
    }
    if (shared.connections >= shared.options.max_connections) continue;  // closes it
    auto executor = socket.get_executor();
    auto connection = std::make_shared<HttpConnection>(std::move(socket), &shared);
    asio::co_spawn(
        executor, [connection]() -> asio::awaitable<void> { return connection->Run(); },
        [connection](std::exception_ptr failure) {
          if (failure) spdlog::error("a connection ended by an exception");
        });
  }
}

void HttpServer::Impl::Stop() {
  shared.draining = true;
  if (!context) return;
  context->stop();
  for (std::thread& thread : threads) thread.join();
  threads.clear();
  pool.reset();  // its last jobs may still wake connections
  service->Stop();
  acceptor.reset();
  context.reset();  // ends the connections, which cancel their sequences
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() { Stop(); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options,
                                                              const ServingDeps& deps) {
  if (options.service.served_model_names.empty()) {
    return InvalidArgument("served_model_name: at least one name is needed");
  }
  if (options.max_total_request_bytes < options.max_request_bytes) {
    return InvalidArgument("max_total_request_bytes: {}, at least max_request_bytes, {}, is needed",
                           options.max_total_request_bytes, options.max_request_bytes);
  }
  auto impl = std::make_unique<Impl>();
  impl->shared.options = std::move(options);
  const HttpServerOptions& kept = impl->shared.options;
  impl->context.emplace();
  CADRE_RETURN_IF_ERROR(impl->Listen());
  impl->service.emplace(deps, kept.service);
  impl->pool.emplace(kept.front_threads, kept.max_front_queue);
  impl->shared.service = &*impl->service;
  impl->shared.pool = &*impl->pool;
  Impl* raw = impl.get();
  asio::co_spawn(
      *impl->context, [raw] { return raw->Accept(); }, asio::detached);
  for (int i = 0; i < std::max(kept.io_threads, 1); ++i) {
    impl->threads.emplace_back([raw] { raw->context->run(); });
  }
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

uint16_t HttpServer::port() const { return impl_->port; }

bool HttpServer::Drain(double timeout_s) {
  HttpShared& shared = impl_->shared;
  shared.draining = true;
  std::unique_lock lock(shared.mutex);
  return shared.idle.wait_for(lock, std::chrono::duration<double>(timeout_s),
                              [&] { return shared.in_flight == 0; });
}

void HttpServer::Stop() { impl_->Stop(); }

}  // namespace cadre
