#include "serving/http/http_shared.h"

namespace cadre {

bool HttpShared::TryBegin() {
  std::lock_guard lock(mutex);
  if (draining) return false;
  ++in_flight;
  return true;
}

void HttpShared::End() {
  std::lock_guard lock(mutex);
  if (--in_flight == 0) changed.notify_all();
}

ServingMetrics::Server HttpShared::State() {
  const std::shared_ptr<TlsContext> certificate = tls.context();
  std::lock_guard lock(mutex);
  return {.draining = leaving,
          .connections = connections,
          .in_flight = in_flight,
          .tls_expires = certificate ? certificate->expires : 0};
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

}  // namespace cadre
