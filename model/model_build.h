// The two steps of making a model that every format of files shares. Private to model/.
#pragma once

#include <memory>

#include "model/model.h"

namespace cadre {

// Config and parameters, without memory for them; projections are marked as quantized where
// options.weights is not kStored.
absl::StatusOr<std::unique_ptr<Model>> DescribeModel(HfConfig config, const ModelOptions& options);

// Memory; where options.weights is not kStored, floats written to a marked parameter become it.
// zeroed: the weights are, else they are anything until they are written.
void AllocateModel(const Context& ctx, const ModelOptions& options, bool zeroed, Model* model);

}  // namespace cadre
