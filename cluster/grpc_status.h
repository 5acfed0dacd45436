// Statuses over the wire: both sides number their codes alike.
#pragma once

#include <grpcpp/support/status.h>

#include "core/status.h"

namespace cadre {

// Tells what the service says from what gRPC says itself.
constexpr char kServiceSays[] = "cadre";

inline grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), Message(status), kServiceSays};
}
inline absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

}  // namespace cadre
