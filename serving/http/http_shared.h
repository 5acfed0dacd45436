// What the connections of a server share. Private to the HTTP layer (it needs Boost's headers).
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>

#include "serving/http/access_log.h"
#include "serving/http/api_keys.h"
#include "serving/http/call_info.h"
#include "serving/http/front_pool.h"
#include "serving/http/http_server.h"
#include "serving/http/openai_service.h"
#include "serving/http/router.h"
#include "serving/http/tls.h"

namespace cadre {

struct HttpShared {
  HttpServerOptions options;
  KeyRing client_keys, admin_keys;
  TlsSlot tls;
  std::unique_ptr<AccessLog> access_log;  // null: none
  IdSource ids;
  OpenAiService* service = nullptr;
  FrontPool* pool = nullptr;
  std::atomic<bool> serving{false};   // service and pool are there
  std::atomic<bool> leaving{false};   // /ready says 503, so that nobody sends more
  std::atomic<bool> draining{false};  // and what comes all the same is refused
  std::atomic<size_t> body_bytes{0};  // of all the requests that are read or prepared
  std::mutex mutex;
  std::condition_variable changed;
  int in_flight = 0;                // completion requests being read or answered
  std::atomic<int> connections{0};  // on all addresses

  // False where the server drains; else End must follow.
  bool TryBegin();
  void End();
  ServingMetrics::Server State();
  // Null while there is no service yet.
  ServingMetrics* metrics() { return serving ? &service->metrics() : nullptr; }
};

// What the connections of one listening address share.
struct HttpListener {
  HttpListener(Bind bind, bool secure, int max_connections)
      : bind(bind), secure(secure), max_connections(max_connections) {}
  const Bind bind;
  const bool secure;  // speaks TLS
  const int max_connections;
  std::atomic<int> connections{0};
};

// What one request's body counts in the sum that the server bounds. Any thread, one at a time.
class BodyShare {
 public:
  explicit BodyShare(HttpShared* shared) : shared_(shared) {}
  BodyShare(BodyShare&& other) noexcept
      : shared_(other.shared_), bytes_(std::exchange(other.bytes_, 0)) {}
  ~BodyShare() { Release(); }

  // False, and as before, where the sum would pass its bound.
  bool GrowTo(size_t bytes);
  void Release();

 private:
  HttpShared* shared_;
  size_t bytes_ = 0;
};

}  // namespace cadre
