#include "model/model.h"

#include "core/ops/quantize.h"
#include "model/gguf_model.h"
#include "model/model_build.h"
#include "model/quantized_folder.h"

namespace cadre {

absl::StatusOr<WeightFormat> ParseWeightFormat(std::string_view name) {
  if (name == "stored") return WeightFormat::kStored;
  if (name == "int8") return WeightFormat::kInt8;
  if (name == "int4") return WeightFormat::kInt4;
  return InvalidArgument("weights '{}': allowed are stored, int8 and int4", name);
}

WeightFormat ForProductsAlone(WeightFormat weights, DType dtype) {
  return weights == WeightFormat::kStored && dtype != DType::kF64 ? WeightFormat::kPanels : weights;
}

absl::StatusOr<std::unique_ptr<Model>> DescribeModel(HfConfig config, const ModelOptions& options) {
  CADRE_ASSIGN_OR_RETURN(DecoderSpec spec, ResolveModelConfig(config.model));
  auto store = std::make_unique<ParameterStore>();
  CADRE_ASSIGN_OR_RETURN(Decoder decoder, Decoder::Create(spec, options.decoder, *store));
  if (options.weights != WeightFormat::kStored) {
    CADRE_CHECK(!options.gradients, "quantized weights with gradients");
    const bool head = options.weights == WeightFormat::kPanels;
    store->KeepQuantized([head](const ParamSpec& spec) {
      return spec.use == ParamUse::kProjection || (head && spec.use == ParamUse::kHead);
    });
  }
  return std::make_unique<Model>(std::move(config), std::move(decoder), std::move(store),
                                 options.dtype);
}

void AllocateModel(const Context& ctx, const ModelOptions& options, bool zeroed, Model* model) {
  ParameterStore& store = model->parameters();
  ParameterStore::AllocateOptions allocate{
      .gradients = options.gradients, .zeroed = zeroed, .parts = options.parts};
  if (options.weights != WeightFormat::kStored) {
    Context own = {.allocator = ctx.allocator, .threads = ctx.threads};
    allocate.quantize = [own, format = options.weights](const Tensor& weight) mutable {
      return ops::QuantizeParam(own, weight, format);
    };
  }
  store.Allocate(*ctx.allocator, options.dtype, std::move(allocate));
  for (ParamId id = 0; id < store.size(); ++id) {
    store.ExpectReports(id, model->decoder().uses(id));
  }
}

namespace {

// How the folder's weights will be kept.
absl::StatusOr<WeightFormat> WeightsToLoad(const HfConfig& config, const std::string& folder,
                                           const ModelOptions& wanted) {
  CADRE_ASSIGN_OR_RETURN(const WeightFormat stored, FormatOfFolder(config, folder));
  if (stored == WeightFormat::kStored) return wanted.weights;
  if (wanted.gradients) {
    return InvalidArgument("{}: its weights are quantized, which are not trained", folder);
  }
  const bool as_stored =
      wanted.weights == WeightFormat::kStored || wanted.weights == WeightFormat::kPanels;
  if (!as_stored && wanted.weights != stored) {
    return InvalidArgument("{}: is quantized already: weights can only be 'stored'", folder);
  }
  return stored;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> CreateModel(const Context& ctx, HfConfig config,
                                                   const ModelOptions& options) {
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, DescribeModel(std::move(config), options));
  AllocateModel(ctx, options, /*zeroed=*/true, model.get());
  return model;
}

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const Context& ctx, const std::string& folder,
                                                 const ModelOptions& wanted) {
  if (IsGguf(folder)) return LoadGgufModel(ctx, folder, wanted);
  CADRE_ASSIGN_OR_RETURN(HfConfig config, LoadHfConfig(folder));
  ModelOptions options = wanted;
  CADRE_ASSIGN_OR_RETURN(options.weights, WeightsToLoad(config, folder, wanted));
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, DescribeModel(std::move(config), options));
  // A config that claims more than the files hold must not allocate for it.
  CADRE_RETURN_IF_ERROR(CheckWeights(model->parameters(), folder, model->config()));
  AllocateModel(ctx, options, /*zeroed=*/false, model.get());
  Context load = ctx;
  load.parameters = &model->parameters();
  load.packed = nullptr;
  load.tape = nullptr;
  PackInto pack;
  if (options.pack) {
    pack.packed = &model->packed();
    // A tied head is the first stage's embedding, too, where it multiplies nothing.
    if (model->decoder().part().last()) pack.head = model->decoder().head();
  }
  CADRE_ASSIGN_OR_RETURN(model->folder_tensors(), LoadWeights(load, folder, model->config(), pack));
  return model;
}

}  // namespace cadre
