#include "parallel/ucx_address.h"

#include <xxhash.h>

#include <cstdint>
#include <cstring>

namespace cadre {
namespace {

struct Header {
  char magic[8] = {'C', 'a', 'd', 'r', 'U', 'C', 'X', '1'};
  int32_t rank = -1;
  uint32_t bytes = 0;
  uint64_t checksum = 0;
};

// UCX reads an address record by record until one is marked as the last, as these bytes all are.
// Records have lengths of one byte.
constexpr size_t kPadding = 1024;
constexpr char kEnd = '\xff';

}  // namespace

std::string WrapUcxAddress(int rank, std::string_view bytes) {
  CADRE_CHECK(!bytes.empty() && bytes.size() <= kMaxUcxAddressBytes - sizeof(Header), "{} bytes",
              bytes.size());
  const Header header{.rank = rank,
                      .bytes = static_cast<uint32_t>(bytes.size()),
                      .checksum = XXH3_64bits(bytes.data(), bytes.size())};
  std::string wrapped(reinterpret_cast<const char*>(&header), sizeof(header));
  return wrapped.append(bytes);
}

absl::StatusOr<std::string> UnwrapUcxAddress(int rank, std::string_view wrapped,
                                             std::string_view own) {
  CADRE_CHECK(own.size() > sizeof(Header));
  if (wrapped.size() <= sizeof(Header) || wrapped.size() > kMaxUcxAddressBytes) {
    return InvalidArgument("UCX address of rank {}: {} bytes, allowed are {} to {}", rank,
                           wrapped.size(), sizeof(Header) + 1, kMaxUcxAddressBytes);
  }
  Header header;
  std::memcpy(&header, wrapped.data(), sizeof(header));
  const std::string_view bytes = wrapped.substr(sizeof(header));
  if (std::memcmp(header.magic, Header{}.magic, sizeof(header.magic)) != 0 ||
      header.bytes != bytes.size() || header.checksum != XXH3_64bits(bytes.data(), bytes.size())) {
    return InvalidArgument("UCX address of rank {}: {} bytes that are no address", rank,
                           wrapped.size());
  }
  if (header.rank != rank) {
    return InvalidArgument("UCX address of rank {}: it is rank {}'s", rank, header.rank);
  }
  // UCX's first byte holds the format's version and which fields there are.
  if (const char format = own[sizeof(Header)]; bytes[0] != format) {
    return InvalidArgument("UCX address of rank {}: format {:#04x}, this rank's UCX has {:#04x}",
                           rank, static_cast<uint8_t>(bytes[0]), static_cast<uint8_t>(format));
  }
  return std::string(bytes).append(kPadding, kEnd);
}

}  // namespace cadre
