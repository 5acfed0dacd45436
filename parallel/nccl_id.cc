#include <algorithm>
#include <cstring>

#include "parallel/nccl_device.h"

namespace cadre {
namespace {

constexpr char kId = 'i', kError = 'e';
constexpr size_t kHeader = 2;  // the kind, the length of what follows

}  // namespace

std::string WrapNcclId(const absl::StatusOr<NcclId>& id) {
  std::string content;
  if (id.ok()) {
    content.assign(reinterpret_cast<const char*>(id->data()), id->size());
  } else {
    content = Message(id.status()).substr(0, kNcclIdMessageBytes - kHeader);
  }
  std::string message = {id.ok() ? kId : kError, static_cast<char>(content.size())};
  message += content;
  message.resize(kNcclIdMessageBytes);
  return message;
}

absl::StatusOr<NcclId> UnwrapNcclId(std::string_view message) {
  if (message.size() != kNcclIdMessageBytes) {
    return InvalidArgument("NCCL's id came in a message of {} bytes, {} expected", message.size(),
                           kNcclIdMessageBytes);
  }
  const size_t bytes = static_cast<uint8_t>(message[1]);
  if (message[0] == kError && bytes <= message.size() - kHeader) {
    std::string text(message.substr(kHeader, bytes));
    std::ranges::replace_if(
        text, [](char c) { return c < 0x20 || c > 0x7e; }, '?');
    return Internal("rank 0 of the group made no id for NCCL: {}", text);
  }
  NcclId id;
  if (message[0] != kId || bytes != id.size()) {
    return InvalidArgument("NCCL's id has {} bytes, {} expected", bytes, id.size());
  }
  std::memcpy(id.data(), message.data() + kHeader, id.size());
  return id;
}

}  // namespace cadre
