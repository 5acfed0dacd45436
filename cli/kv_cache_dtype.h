// What `kv_cache_dtype` and --kv-cache-dtype mean.
#pragma once

#include <string_view>

#include "core/ops/kv_view.h"
#include "core/status.h"

namespace cadre::cli {

// `name`: auto (what the model computes in), bf16, int8 or int4. kInvalidArgument where it is none
// of these, or bf16 for a model that computes in another type; begins with `field`.
absl::StatusOr<ops::KvQuantization> ParseKvCacheDType(std::string_view field, std::string_view name,
                                                      DType compute);

}  // namespace cadre::cli
