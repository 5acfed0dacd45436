// What a model asks of a layout, whoever runs it; pure.
#pragma once

#include <cstdint>

#include "model/decoder_spec.h"
#include "parallel/layout.h"

namespace cadre {

// But for the batch. The costs of embedding and head are those at sequences of `seq_len` tokens.
LayoutNeeds ModelNeedsOf(const DecoderSpec& spec, int64_t seq_len);

}  // namespace cadre
