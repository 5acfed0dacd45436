// The keys that let clients in. Kept as SHA-256 digests: the time that a look-up takes depends on
// nothing but the length of what was given, and a core dump holds no key.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre {

// Immutable; any thread.
class ApiKeys {
 public:
  ApiKeys() = default;
  explicit ApiKeys(std::span<const std::string> keys);

  bool empty() const { return digests_.empty(); }
  // The first 8 hexadecimal digits of the digest of `key`, by which logs and quotas call it;
  // nothing where it is none of these keys.
  std::optional<std::string> Find(std::string_view key) const;

 private:
  using Digest = std::array<uint8_t, 32>;
  static Digest DigestOf(std::string_view key);
  std::vector<Digest> digests_;
};

// Visible ASCII, at least one character.
bool IsKey(std::string_view text);

// What a request brought: "Bearer KEY" of Authorization, else the whole of X-Api-Key.
std::string_view GivenKey(std::string_view authorization, std::string_view x_api_key);

// One key (IsKey) a line; blank lines and lines that begin with '#' are skipped.
// kPermissionDenied where others than the owner and its group may read the file or others than the
// owner may write it; kInvalidArgument names the line that is no key, never its text, or a file
// without any.
absl::StatusOr<std::vector<std::string>> ReadKeyFile(const std::string& path);

// Keys that may be replaced while requests look them up. Any thread.
class KeyRing {
 public:
  explicit KeyRing(ApiKeys keys = {}) { Replace(std::move(keys)); }
  void Replace(ApiKeys keys);
  std::shared_ptr<const ApiKeys> keys() const;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const ApiKeys> keys_;
};

}  // namespace cadre
