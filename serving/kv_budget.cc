#include "serving/kv_budget.h"

#include <algorithm>

namespace cadre {
namespace {

// What the model or its cache has that the policy cannot do with.
absl::Status CheckPolicy(const KvEvictionPolicy& policy, const EvictionDeps& deps) {
  if (!policy.positions_in_cache()) return absl::OkStatus();
  if (deps.pool.layout(0).quantized()) {
    return InvalidArgument("kv_eviction: {} keeps keys unrotated, which codes cannot be",
                           policy.name());
  }
  if (!deps.latent) return absl::OkStatus();
  return InvalidArgument("kv_eviction: {} is not built for latent attention", policy.name());
}

// field: what names the budget.
absl::Status CheckBudget(const char* field, int64_t budget, const KvEvictionPolicy& policy,
                         const EvictionOptions& options) {
  const int64_t least = std::max(policy.least_budget(), options.least_budget);
  if (budget < least) {
    return InvalidArgument("{}: {}, at least {} with {} here", field, budget, least, policy.name());
  }
  if (options.most_budget > 0 && budget > options.most_budget) {
    return InvalidArgument("{}: {}, at most {} here", field, budget, options.most_budget);
  }
  return absl::OkStatus();
}

}  // namespace

bool HasLatentAttention(const DecoderSpec& spec) {
  return std::ranges::any_of(
      spec.layers, [](const LayerSpec& layer) { return layer.attention.latent.kv_rank > 0; });
}

absl::Status CheckEviction(const EvictionOptions& options, const DecoderSpec& spec,
                           const EvictionDeps& deps) {
  if (options.policy.empty()) {
    if (options.budget == 0) return absl::OkStatus();
    return InvalidArgument("kv_eviction.budget: {}, and kv_eviction.policy names none",
                           options.budget);
  }
  CADRE_ASSIGN_OR_RETURN(const auto policy,
                         MakeEvictionPolicy(options.policy, options.cake, "kv_eviction.policy"));
  if (options.most_budget > 0 && options.most_budget < options.least_budget) {
    return InvalidArgument("kv_eviction.max_budget: {}, under kv_eviction.min_budget of {}",
                           options.most_budget, options.least_budget);
  }
  if (deps.ranks) return InvalidArgument("kv_eviction.policy: not built for several ranks");
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const int64_t window = spec.layers[l].attention.window;
    if (window == 0) continue;
    return InvalidArgument("kv_eviction.policy: layer {} has a sliding window of {} tokens", l,
                           window);
  }
  if (!deps.pool.uniform()) {
    return InvalidArgument("kv_eviction.policy: layers have keys and values of different shapes");
  }
  CADRE_RETURN_IF_ERROR(CheckPolicy(*policy, deps));
  if (options.budget == 0) return absl::OkStatus();
  if (deps.speculation) {
    return InvalidArgument("kv_eviction.budget: {}, not together with speculation", options.budget);
  }
  return CheckBudget("kv_eviction.budget", options.budget, *policy, options);
}

absl::StatusOr<std::unique_ptr<EvictingSequence>> MakeEvicting(const GenerationRequest& request,
                                                               const EvictionOptions& options,
                                                               const EvictionDeps& deps) {
  const bool asked = request.kv_budget > 0 || !request.kv_eviction.empty();
  const char* field = request.kv_budget > 0 ? "kv_budget" : "kv_eviction";
  if (options.policy.empty()) {
    if (!asked) return nullptr;
    return InvalidArgument("{}: this server evicts nothing, its kv_eviction.policy is not set",
                           field);
  }
  const int64_t budget = request.kv_budget > 0 ? request.kv_budget : options.budget;
  if (budget == 0 && !request.kv_eviction.empty()) {
    return InvalidArgument("kv_eviction: {}, and no kv_budget is given", request.kv_eviction);
  }
  if (budget == 0 || request.pooling != Pooling::kNone) return nullptr;
  const std::string& name = request.kv_eviction.empty() ? options.policy : request.kv_eviction;
  CADRE_ASSIGN_OR_RETURN(auto policy, MakeEvictionPolicy(name, options.cake));
  CADRE_RETURN_IF_ERROR(CheckPolicy(*policy, deps));
  CADRE_RETURN_IF_ERROR(CheckBudget("kv_budget", budget, *policy, options));
  const EvictionShape shape{.tokens = static_cast<int64_t>(request.prompt->size()),
                            .layers = deps.pool.layers(),
                            .budget = budget};
  const int64_t answer = std::max(request.sampling.max_tokens - 1, 0);
  const bool grows_over = policy->evicts_answers() && shape.tokens + answer > budget;
  if (!policy->Evicts(shape) && !grows_over) return nullptr;
  const std::string asker =
      request.kv_budget > 0
          ? "kv_budget"
          : fmt::format(
                "this server's kv_eviction.budget of {}, which a kv_budget of the "
                "request's own goes before",
                budget);
  if (request.sampling.choice > 0) {
    return InvalidArgument("n: more than one choice, not together with {}", asker);
  }
  if (deps.speculation) {
    return InvalidArgument("kv_budget: not together with speculation, which this server does");
  }
  if (request.sampling.prompt_logprobs >= 0) {
    return InvalidArgument("prompt_logprobs: logprobs of a prompt, not together with {}", asker);
  }
  return std::make_unique<EvictingSequence>(deps.pool, std::move(policy), shape, answer);
}

}  // namespace cadre
