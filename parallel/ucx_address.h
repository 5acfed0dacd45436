// What wraps a UCX worker's address on its way between ranks: UCX's own bytes say neither whose
// they are nor where they end.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "core/status.h"

namespace cadre {

constexpr size_t kMaxUcxAddressBytes = 64 << 10;  // wrapped

std::string WrapUcxAddress(int rank, std::string_view bytes);

// UCX's bytes, followed by padding at which it stops reading, whatever the bytes are. `own`: what
// Wrap gave for this rank. kInvalidArgument: not the wrapped address of `rank`, or of a UCX that
// writes addresses otherwise, which this one would abort at.
absl::StatusOr<std::string> UnwrapUcxAddress(int rank, std::string_view wrapped,
                                             std::string_view own);

}  // namespace cadre
