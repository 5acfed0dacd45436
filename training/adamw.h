// AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019), in the order of
// operations of torch.optim.AdamW:
//   w *= 1 − lr·wd;  m += (1 − β1)(g − m);  v = β2·v + (1 − β2)·g²
//   w −= lr / (1 − β1^t) · m / (sqrt(v) / sqrt(1 − β2^t) + eps)
// State: "exp_avg", "exp_avg_sq" and, for bf16 weights, "master", all f32. Where the compute dtype
// is f32 or f64 the weight is its own master, and the state has its dtype. `owned`: the part of
// each bucket that it has the state of.
#pragma once

#include <cstdint>
#include <memory>

#include "training/optimizer.h"

namespace cadre {

std::unique_ptr<Optimizer> MakeAdamW(const config::OptimizerConfig& config, ParameterStore& store,
                                     Allocator& allocator, std::vector<Shard> owned);

int64_t AdamWStateBytes(int64_t elements, DType weight_dtype);

}  // namespace cadre
