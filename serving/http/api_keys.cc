#include "serving/http/api_keys.h"

#include <fmt/core.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <utility>

#include "core/file.h"
#include "serving/http/private_file.h"

namespace cadre {
namespace {

constexpr int64_t kMaxFileBytes = 1 << 20;

}  // namespace

ApiKeys::Digest ApiKeys::DigestOf(std::string_view key) {
  Digest digest = {};
  unsigned size = digest.size();
  CADRE_CHECK(EVP_Digest(key.data(), key.size(), digest.data(), &size, EVP_sha256(), nullptr) == 1);
  return digest;
}

ApiKeys::ApiKeys(std::span<const std::string> keys) {
  for (const std::string& key : keys) digests_.push_back(DigestOf(key));
}

std::optional<std::string> ApiKeys::Find(std::string_view key) const {
  const Digest given = DigestOf(key);
  bool found = false;
  for (const Digest& digest : digests_) {
    found |= CRYPTO_memcmp(digest.data(), given.data(), given.size()) == 0;
  }
  if (!found) return std::nullopt;
  return fmt::format("{:02x}{:02x}{:02x}{:02x}", given[0], given[1], given[2], given[3]);
}

bool IsKey(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) { return c > ' ' && c < 0x7f; });
}

std::string_view GivenKey(std::string_view authorization, std::string_view x_api_key) {
  constexpr std::string_view kBearer = "Bearer ";
  return authorization.starts_with(kBearer) ? authorization.substr(kBearer.size()) : x_api_key;
}

absl::StatusOr<std::vector<std::string>> ReadKeyFile(const std::string& path) {
  CADRE_RETURN_IF_ERROR(CheckPrivateFile(path));
  CADRE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  std::vector<std::string> keys;
  int number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty() || line.starts_with('#')) continue;
    if (!IsKey(line)) {
      return InvalidArgument(
          "{}: line {}: a key has visible ASCII characters alone, no spaces; what "
          "follows # is a comment in a line of its own",
          path, number);
    }
    keys.push_back(std::move(line));
  }
  if (keys.empty()) return InvalidArgument("{}: it holds no key", path);
  return keys;
}

void KeyRing::Replace(ApiKeys keys) {
  auto fresh = std::make_shared<const ApiKeys>(std::move(keys));
  std::lock_guard lock(mutex_);
  keys_ = std::move(fresh);
}

std::shared_ptr<const ApiKeys> KeyRing::keys() const {
  std::lock_guard lock(mutex_);
  return keys_;
}

}  // namespace cadre
