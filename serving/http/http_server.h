// The OpenAI-compatible HTTP server.
//
//   CADRE_ASSIGN_OR_RETURN(auto server, HttpServer::Listen(options));
//   ... load the model: /health says 200, everything else 503
//   server->Serve({&tokenizer, &chat, &engine});
//   ... on SIGTERM:
//   server->Leave();    // /ready says 503
//   server->Drain(30);  // running answers finish, new ones are 503
//   server->Stop();
//
// Listen, Serve, Leave, Drain and Stop are called from one thread that is none of the server's own.
// Connections run as coroutines on the I/O threads, text work on the front pool; the engine is
// entered through EngineClient alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "serving/http/openai_service.h"

namespace cadre {

struct HttpServerOptions {
  std::string host = "127.0.0.1";     // an address, not a name
  uint16_t port = 0;                  // 0: a free one, see port()
  std::vector<std::string> api_keys;  // of clients; none: anyone, on the loopback alone
  // A bind of its own for /metrics and administration; -1: none, /metrics is then for clients with
  // a key, and there is no administration. Its keys are not the clients'.
  int admin_port = -1;
  std::string admin_host = "127.0.0.1";
  std::vector<std::string> admin_api_keys;
  // PEM files, both or none: the clients' bind then speaks TLS, and so does the administration's
  // where it is not on the loopback.
  std::string tls_certificate_file, tls_key_file;
  std::string access_log_file;                    // "-": standard error; empty: none
  bool allow_unauthenticated = false;             // no keys on an address that other machines reach
  bool public_models = false;                     // /v1/models needs no key
  bool chat_page = true;                          // at /
  std::vector<std::string> cors_allowed_origins;  // empty: any, without credentials
  int max_connections = 1024;
  size_t max_request_bytes = size_t{16} << 20;
  // Of all bodies that are being read or wait to become tokens; what comes over it is 503.
  size_t max_total_request_bytes = size_t{256} << 20;
  // Seconds. A client has read_timeout_s for the header and again for the body, may be silent for
  // keep_alive_timeout_s between requests, and must take what is sent within write_timeout_s. A
  // request may run for request_timeout_s in all (0: no bound).
  double read_timeout_s = 10;  // and a second for each 64 KiB of a body
  double keep_alive_timeout_s = 75;
  double write_timeout_s = 30;
  double request_timeout_s = 600;
  int io_threads = 1;
  int front_threads = 2;
  size_t max_front_queue = 1024;  // requests waiting for the front pool; beyond that 429
  ServiceOptions service;
};

// kInvalidArgument: no name, no address, an address that other machines reach without keys for it,
// no key, half of TLS's files, or a bound on all bodies below that on one.
absl::Status CheckHttpOptions(const HttpServerOptions& options);

class HttpServer {
 public:
  // Binds, and answers what needs no model. kUnavailable: the address cannot be bound, and why.
  // kInvalidArgument as CheckHttpOptions.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Listen(HttpServerOptions options);
  // Serves from now on. Once.
  void Serve(const ServingDeps& deps);
  // Both.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options,
                                                           const ServingDeps& deps);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;
  uint16_t admin_port() const;  // 0 without

  // For requests that come from now on. kInvalidArgument, and the old ones count, where Start would
  // have refused them. Any thread.
  absl::Status ReplaceKeys(const std::vector<std::string>& api_keys,
                           const std::vector<std::string>& admin_api_keys);

  // Files that the options name: reads certificate and key again for new connections, and goes on
  // in a new access log where the old one was moved away. After an error the old ones stay. Any
  // thread.
  absl::Status ReloadFiles();

  // /ready says 503 from now on, so that whoever balances load sends no more; what comes all the
  // same is still answered.
  void Leave();

  // Leaves, refuses new work and waits until the running answers are written, at most `timeout_s`;
  // false when some still run then. May be called again with more time.
  bool Drain(double timeout_s);

  // Cancels what runs, closes every connection and joins the threads.
  void Stop();

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace cadre
