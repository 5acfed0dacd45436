#include "serving/http/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <string_view>
#include <utility>

#include "core/file.h"
#include "serving/http/private_file.h"

namespace cadre {
namespace ssl = boost::asio::ssl;

namespace {

// HTTP/1.1 where the client lets us choose; a client that offers none of ours goes on without.
int ChooseProtocol(SSL*, const unsigned char** chosen, unsigned char* size,
                   const unsigned char* offered, unsigned offered_size, void*) {
  static constexpr unsigned char kOurs[] = "\x08http/1.1";
  unsigned char* found = nullptr;
  const int result =
      SSL_select_next_proto(&found, size, kOurs, sizeof(kOurs) - 1, offered, offered_size);
  if (result != OPENSSL_NPN_NEGOTIATED) return SSL_TLSEXT_ERR_NOACK;
  *chosen = found;
  return SSL_TLSEXT_ERR_OK;
}

int64_t ExpiryOf(SSL_CTX* context) {
  const X509* certificate = SSL_CTX_get0_certificate(context);
  tm time = {};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &time) != 1) {
    return 0;
  }
  return timegm(&time);
}

absl::Status FileError(const char* field, const std::string& path, const char* what) {
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  ERR_clear_error();
  return InvalidArgument("{} {}: {}{}", field, path, what,
                         reason == nullptr ? "" : fmt::format(" ({})", reason));
}

}  // namespace

absl::StatusOr<std::shared_ptr<TlsContext>> LoadTls(const std::string& certificate_file,
                                                    const std::string& key_file) {
  if (access(certificate_file.c_str(), R_OK) != 0) {
    return ErrnoError(certificate_file, "cannot read tls_certificate_file", errno);
  }
  CADRE_RETURN_IF_ERROR(CheckPrivateFile(key_file));
  auto tls = std::make_shared<TlsContext>();
  SSL_CTX* native = tls->context.native_handle();
  SSL_CTX_set_min_proto_version(native, TLS1_2_VERSION);
  SSL_CTX_set_options(
      native, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  // Thousands of connections wait most of the time: they need no buffers then.
  SSL_CTX_set_mode(native, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_alpn_select_cb(native, ChooseProtocol, nullptr);
  boost::system::error_code error;
  tls->context.use_certificate_chain_file(certificate_file, error);
  if (error) return FileError("tls_certificate_file", certificate_file, "no certificate");
  tls->context.use_private_key_file(key_file, ssl::context::pem, error);
  if (error) return FileError("tls_key_file", key_file, "no key of that certificate");
  if (SSL_CTX_check_private_key(native) != 1) {
    return FileError("tls_key_file", key_file, "not the certificate's key");
  }
  tls->expires = ExpiryOf(native);
  return tls;
}

void TlsSlot::Replace(std::shared_ptr<TlsContext> context) {
  std::lock_guard lock(mutex_);
  context_ = std::move(context);
}

std::shared_ptr<TlsContext> TlsSlot::context() const {
  std::lock_guard lock(mutex_);
  return context_;
}

}  // namespace cadre
