#include "training/layout_needs.h"

#include <algorithm>
#include <utility>

#include "model/layout_needs.h"

namespace cadre {
namespace {

absl::Status CheckSupported(const DecoderSpec& spec, const Layout& layout) {
  const bool sinks = std::ranges::any_of(
      spec.layers, [](const LayerSpec& layer) { return layer.attention.sinks; });
  if (!layout.ring || !sinks) return absl::OkStatus();
  return Unimplemented(
      "parallel.context_parallel_method: ring knows no attention sinks, which {} has; allowed: "
      "all_gather",
      spec.model_type);
}

// As for a layout's fields: what has another value than its default, or than what turns it off,
// must have something to act on.
absl::Status CheckMixture(const DecoderSpec& spec, const config::MoeTrainingConfig& moe) {
  const bool experts = std::ranges::any_of(spec.layers, &LayerSpec::is_moe);
  const bool biases = std::ranges::any_of(spec.layers, [](const LayerSpec& layer) {
    return layer.is_moe && layer.moe.router.kind == moe::RouterKind::kSigmoidBias;
  });
  if (!biases && moe.router_bias_update_rate() != 0) {
    return InvalidArgument(
        "moe.router_bias_update_rate {}: {} has no router with a bias that chooses; allowed: 0",
        moe.router_bias_update_rate(), spec.model_type);
  }
  if (experts) return absl::OkStatus();
  const double balance = moe.balance_loss_coef();
  const double usual = config::MoeTrainingConfig::default_instance().balance_loss_coef();
  if (balance != 0 && balance != usual) {
    return InvalidArgument("moe.balance_loss_coef {}: {} has no experts; allowed: 0, {}", balance,
                           spec.model_type, usual);
  }
  if (moe.balance_scope() != config::BALANCE_SCOPE_SEQUENCE) {
    return InvalidArgument("moe.balance_scope: {} has no experts; allowed: sequence",
                           spec.model_type);
  }
  for (const auto& [field, value] : {std::pair("router_z_loss_coef", moe.router_z_loss_coef()),
                                     std::pair("capacity_factor", moe.capacity_factor())}) {
    if (value == 0) continue;
    return InvalidArgument("moe.{} {}: {} has no experts; allowed: 0", field, value,
                           spec.model_type);
  }
  return absl::OkStatus();
}

}  // namespace

DType ComputeTypeOf(const config::TrainConfig& config) {
  switch (config.dtype()) {
    case config::COMPUTE_DTYPE_BF16:
      return DType::kBF16;
    case config::COMPUTE_DTYPE_F32:
      return DType::kF32;
    case config::COMPUTE_DTYPE_F64:
      return DType::kF64;
  }
  __builtin_unreachable();
}

LayoutNeeds LayoutNeedsOf(const DecoderSpec& spec, const config::TrainConfig& config) {
  LayoutNeeds needs = ModelNeedsOf(spec, config.data().seq_len());
  needs.seq_len = static_cast<int>(config.data().seq_len());
  needs.global_batch_size = config.global_batch_size();
  needs.micro_batch_size = config.micro_batch_size();
  return needs;
}

absl::StatusOr<HfConfig> ModelOfRun(const config::TrainConfig& config) {
  const int given =
      int{config.has_model()} + int{config.has_model_path()} + int{config.has_init_from()};
  if (given != 1) {
    return InvalidArgument(
        "model, model_path, init_from: {} of them are given, exactly one is needed", given);
  }
  if (config.has_model()) return HfConfig{.model = config.model()};
  const bool weights = config.has_init_from();
  auto hf = LoadHfConfig(weights ? config.init_from() : config.model_path());
  if (!absl::IsNotFound(hf.status())) return hf;
  return InvalidArgument("{}: {}", weights ? "init_from" : "model_path", Message(hf.status()));
}

absl::StatusOr<DecoderSpec> SpecOfRun(const config::TrainConfig& config) {
  CADRE_ASSIGN_OR_RETURN(const HfConfig hf, ModelOfRun(config));
  return ResolveModelConfig(hf.model);
}

absl::StatusOr<Layout> LayoutOfRun(const config::TrainConfig& config, int world) {
  CADRE_ASSIGN_OR_RETURN(const DecoderSpec spec, SpecOfRun(config));
  CADRE_ASSIGN_OR_RETURN(const Layout layout,
                         ResolveLayout(config.parallel(), world, LayoutNeedsOf(spec, config)));
  CADRE_RETURN_IF_ERROR(CheckSupported(spec, layout));
  CADRE_RETURN_IF_ERROR(CheckMixture(spec, config.moe()));
  return layout;
}

}  // namespace cadre
