// Reads parameters from a folder's tensors while those that are there are converted and packed.
// Private to model/.
#pragma once

#include <span>

#include "core/context.h"
#include "core/parameters.h"
#include "core/safetensors_folder.h"
#include "model/hf_folder.h"

namespace cadre {

// Fills `ids` of ctx.parameters, in the order of the files. Every source is there, of its shape and
// of a floating type. Errors as FileReader's.
absl::Status ReadParams(Context& ctx, const SafetensorsFolder& files, std::span<const ParamId> ids,
                        const PackInto& pack);

}  // namespace cadre
