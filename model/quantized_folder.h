// Folders of weights that are quantized ahead: a Hugging Face folder whose config.json has
//
//   "quantization_config": {"quant_method": "cadre", "fmt": "int4-g32-v1"}     (or "int8-row-v1")
//
// and that has, instead of each projection's NAME [N, K], NAME.codes and NAME.scales:
//
//   int8-row-v1: codes I8 [N, K], scales F32 [N];           w = code * scale
//   int4-g32-v1: codes U8 [N, ceil(K / 2)], the even k in the lower half of a byte,
//                scales F16 [N, ceil(K / 32)];              w = (code - 8) * scale
//
// What is read from it has the bits of quantizing the folder that it was made of on loading. One
// thread calls; ctx.threads work.
#pragma once

#include <string>

#include "core/context.h"
#include "core/parameters.h"
#include "core/safetensors_folder.h"
#include "core/status.h"
#include "model/hf_config.h"

namespace cadre {

// kStored where weights are floats. kUnimplemented: another method or fmt, named with `path`.
absl::StatusOr<WeightFormat> FormatOfFolder(const HfConfig& config, const std::string& path);

// Writes the folder `to`, which is empty or missing, from the folder of floats `from`: weights,
// configs and tokenizer. Quantizes one tensor at a time. kUnimplemented: a layout of experts that
// is quantized on loading alone (gpt_oss).
absl::Status SaveQuantizedFolder(Context& ctx, const std::string& from, const std::string& to,
                                 WeightFormat format);

// Whether the codes and scales of a source are there, with their shapes and types, and whole.
absl::Status CheckQuantizedSource(const SafetensorsFolder& files, const std::string& path,
                                  const ParamSource& source, WeightFormat format);
std::string CodesName(const std::string& tensor);
std::string ScalesName(const std::string& tensor);

// A parameter all of whose sources were checked.
QuantizedParam ReadQuantizedParam(Context& ctx, const SafetensorsFolder& files,
                                  const ParamSpec& spec, WeightFormat format);

}  // namespace cadre
