#include "model/model.h"

namespace cadre {

namespace {

absl::StatusOr<std::unique_ptr<Model>> Describe(HfConfig config, const ModelOptions& options) {
  CADRE_ASSIGN_OR_RETURN(DecoderSpec spec, ResolveModelConfig(config.model));
  auto store = std::make_unique<ParameterStore>();
  CADRE_ASSIGN_OR_RETURN(Decoder decoder, Decoder::Create(spec, options.decoder, *store));
  return std::make_unique<Model>(std::move(config), std::move(decoder), std::move(store),
                                 options.dtype);
}

void Allocate(const Context& ctx, const ModelOptions& options, Model* model) {
  ParameterStore& store = model->parameters();
  store.Allocate(*ctx.allocator, options.dtype,
                 {.gradients = options.gradients, .parts = options.parts});
  for (ParamId id = 0; id < store.size(); ++id) {
    store.ExpectReports(id, model->decoder().uses(id));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> CreateModel(const Context& ctx, HfConfig config,
                                                   const ModelOptions& options) {
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, Describe(std::move(config), options));
  Allocate(ctx, options, model.get());
  return model;
}

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const Context& ctx, const std::string& folder,
                                                 const ModelOptions& options) {
  CADRE_ASSIGN_OR_RETURN(HfConfig config, LoadHfConfig(folder));
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, Describe(std::move(config), options));
  // A config that claims more than the files hold must not allocate for it.
  CADRE_RETURN_IF_ERROR(CheckWeights(model->parameters(), folder, model->config()));
  Allocate(ctx, options, model.get());
  Context load = ctx;
  load.parameters = &model->parameters();
  load.packed = nullptr;
  load.tape = nullptr;
  CADRE_ASSIGN_OR_RETURN(model->folder_tensors(), LoadWeights(load, folder, model->config()));
  return model;
}

}  // namespace cadre
