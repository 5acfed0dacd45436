// A model as training, serving and the commands use it: config, parameters and decoder together.
//
//   ModelOptions options{.dtype = DType::kBF16};
//   CADRE_ASSIGN_OR_RETURN(auto model, LoadModel(ctx, "models/llama", options));
//   ctx.parameters = &model->parameters();
//   DecoderOutput out = model->decoder().Forward(ctx, batch);
//
// Not movable: contexts point at its parameters. The allocator must outlive it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/context.h"
#include "core/ops/gemm.h"
#include "core/parameters.h"
#include "model/decoder.h"
#include "model/hf_config.h"
#include "model/hf_folder.h"

namespace cadre {

// "stored", "int8", "int4".
absl::StatusOr<WeightFormat> ParseWeightFormat(std::string_view name);

// How who serves keeps weights that a user wants so: floats as panels.
WeightFormat ForProductsAlone(WeightFormat weights, DType dtype);

struct ModelOptions {
  DType dtype = DType::kBF16;  // kBF16, kF32 or kF64
  bool gradients = false;
  ParameterStore::PartsOf parts;  // what of each bucket is kept here; all where absent
  // How attention's, feed-forward and experts' projections are kept; embedding, head, norms and
  // routers stay as they are. Not with gradients.
  WeightFormat weights = WeightFormat::kStored;
  // Loading packs the head, too, where it is the embedding (Model::packed): for who serves. Not of
  // GGUF files.
  bool pack = false;
  DecoderOptions decoder;
};

class Model {
 public:
  Model(HfConfig config, Decoder decoder, std::unique_ptr<ParameterStore> store, DType dtype)
      : config_(std::move(config)),
        decoder_(std::move(decoder)),
        store_(std::move(store)),
        dtype_(dtype) {}
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const HfConfig& config() const { return config_; }
  const DecoderSpec& spec() const { return decoder_.spec(); }
  const Decoder& decoder() const { return decoder_; }
  ParameterStore& parameters() { return *store_; }
  // The compute dtype; parameters kept in fp32 have their own.
  DType dtype() const { return dtype_; }

  // What loading has packed, for a context; allocated as the weights are. Whoever takes it out is
  // gone before the model's allocator is.
  PackedWeights& packed() { return packed_; }

  // Types and carried tensors of the folder that it was loaded from; empty for fresh weights.
  FolderTensors& folder_tensors() { return folder_tensors_; }

 private:
  HfConfig config_;
  Decoder decoder_;
  std::unique_ptr<ParameterStore> store_;
  DType dtype_;
  PackedWeights packed_;
  FolderTensors folder_tensors_;
};

// Allocated with ctx.allocator; the weights are zero until InitializeParameters or LoadWeights.
absl::StatusOr<std::unique_ptr<Model>> CreateModel(const Context& ctx, HfConfig config,
                                                   const ModelOptions& options);

// A Hugging Face folder's config and weights, or a GGUF file's (model/gguf_model.h). Errors as
// LoadHfConfig's and LoadWeights'.
absl::StatusOr<std::unique_ptr<Model>> LoadModel(const Context& ctx, const std::string& folder,
                                                 const ModelOptions& options);

}  // namespace cadre
