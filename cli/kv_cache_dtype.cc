#include "cli/kv_cache_dtype.h"

namespace cadre::cli {

absl::StatusOr<ops::KvQuantization> ParseKvCacheDType(std::string_view field, std::string_view name,
                                                      DType compute) {
  if (name == "auto") return ops::KvQuantization::kNone;
  if (name == "int8") return ops::KvQuantization::kInt8;
  if (name == "int4") return ops::KvQuantization::kInt4;
  if (name != "bf16") {
    return InvalidArgument("{} {}: allowed are auto, bf16, int8 and int4", field, name);
  }
  if (compute != DType::kBF16) {
    return InvalidArgument("{} bf16: the model computes in {}, allowed are auto, int8 and int4",
                           field, Name(compute));
  }
  return ops::KvQuantization::kNone;
}

}  // namespace cadre::cli
