// What a training configuration asks of a layout. Callable from any thread.
#pragma once

#include "core/dtype.h"
#include "core/status.h"
#include "model/decoder_spec.h"
#include "model/hf_config.h"
#include "parallel/layout.h"
#include "proto/train_config.pb.h"

namespace cadre {

DType ComputeTypeOf(const config::TrainConfig& config);

// The configuration's model, or that of the folder that it names. kInvalidArgument: not exactly one
// of model, model_path and init_from is given; their folder is not there.
absl::StatusOr<HfConfig> ModelOfRun(const config::TrainConfig& config);

// The model that the run trains, from its configuration or its folder's.
absl::StatusOr<DecoderSpec> SpecOfRun(const config::TrainConfig& config);

LayoutNeeds LayoutNeedsOf(const DecoderSpec& spec, const config::TrainConfig& config);

// Whether `config` can run on `world` ranks, read from its files alone: for launchers, before they
// start a rank. Errors as ResolveLayout's and the model configuration's; kInvalidArgument, too, for
// fields of `moe` that this model gives nothing to do.
absl::StatusOr<Layout> LayoutOfRun(const config::TrainConfig& config, int world);

}  // namespace cadre
