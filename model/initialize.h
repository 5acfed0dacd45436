// Fresh weights. Every element is a pure function of (seed, Hugging Face tensor name, element index
// in that tensor), so each layout and fusion starts from the same model.
#pragma once

#include <cstdint>

#include "core/context.h"

namespace cadre {

// Fills every parameter of ctx.parameters, which is allocated. One thread calls; ctx.threads work.
void InitializeParameters(Context& ctx, uint64_t seed);

}  // namespace cadre
