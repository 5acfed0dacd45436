// How a model is laid over the ranks that serve it.
#pragma once

#include "core/status.h"
#include "model/decoder_spec.h"
#include "parallel/layout.h"
#include "proto/parallel_config.pb.h"

namespace cadre {

// Pure. Between blocks every tensor-parallel rank has all tokens, however few a step has. Errors as
// ResolveLayout's; kInvalidArgument, too, for fields that do nothing where nothing is trained;
// kUnimplemented for layouts that serving does not have yet.
absl::StatusOr<Layout> LayoutOfServing(const DecoderSpec& spec,
                                       const config::ParallelConfig& config, int world);

}  // namespace cadre
