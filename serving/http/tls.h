// TLS of the server: certificate and key from files, TLS 1.2 or newer, HTTP/1.1. Private to the
// HTTP layer (it needs Boost's headers).
#pragma once

#include <boost/asio/ssl/context.hpp>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "core/status.h"

namespace cadre {

struct TlsContext {
  boost::asio::ssl::context context{boost::asio::ssl::context::tls_server};
  int64_t expires = 0;  // seconds since 1970, of the server's own certificate
};

// `certificate_file`: PEM, the server's certificate first, then those up to the authority's.
// `key_file`: PEM, not for other users. Errors name the file and what is wrong with it.
absl::StatusOr<std::shared_ptr<TlsContext>> LoadTls(const std::string& certificate_file,
                                                    const std::string& key_file);

// The context that new connections take; null: plain TCP. Any thread.
class TlsSlot {
 public:
  void Replace(std::shared_ptr<TlsContext> context);
  std::shared_ptr<TlsContext> context() const;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<TlsContext> context_;
};

}  // namespace cadre
