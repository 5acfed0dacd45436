#include "serving/http/chat_page.h"

#include <fmt/core.h>
#include <openssl/evp.h>

#include <array>

#include "core/status.h"

namespace cadre {
namespace {

// What stands between the one pair of such tags, as a source of a Content-Security-Policy.
std::string DigestOf(std::string_view html, std::string_view tag) {
  const std::string open = fmt::format("<{}>", tag), close = fmt::format("</{}>", tag);
  const size_t begin = html.find(open) + open.size(), end = html.find(close);
  CADRE_CHECK(end != std::string_view::npos && begin < end, "the page has no <{}>", tag);
  std::array<unsigned char, 32> digest = {};
  unsigned size = digest.size();
  CADRE_CHECK(EVP_Digest(html.data() + begin, end - begin, digest.data(), &size, EVP_sha256(),
                         nullptr) == 1);
  std::array<unsigned char, 64> text = {};
  const int length = EVP_EncodeBlock(text.data(), digest.data(), static_cast<int>(size));
  return fmt::format("'sha256-{}'", std::string_view(reinterpret_cast<const char*>(text.data()),
                                                     static_cast<size_t>(length)));
}

}  // namespace

std::string ChatPageHeaders(std::string_view html) {
  return fmt::format(
      "Content-Security-Policy: default-src 'none'; script-src {}; style-src {}; img-src data:; "
      "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
      "X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\n"
      "Cache-Control: no-cache\r\n",
      DigestOf(html, "script"), DigestOf(html, "style"));
}

}  // namespace cadre
