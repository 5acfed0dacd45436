#include "serving/kv_plan.h"

#include <algorithm>

#include "memory/kv_block_pool.h"
#include "serving/machine_memory.h"
#include "serving/serving_ranks.h"

namespace cadre {

namespace {

size_t RanksOnHost(const ServingRanks* ranks) {
  return ranks == nullptr ? 1 : static_cast<size_t>(ranks->ranks_on_host());
}

}  // namespace

absl::Status CheckKvMemory(int64_t kv_cache_memory_bytes, size_t bytes, const ServingRanks* ranks) {
  bytes = std::min(bytes, SIZE_MAX / RanksOnHost(ranks)) * RanksOnHost(ranks);
  const int64_t available = AvailableMemory();
  if (bytes <= static_cast<size_t>(available)) return absl::OkStatus();
  if (kv_cache_memory_bytes > 0) {
    return InvalidArgument("kv_cache_memory_bytes: {}, {} bytes of memory are available",
                           kv_cache_memory_bytes, available);
  }
  return ResourceExhausted("the KV cache takes {} bytes, {} bytes of memory are available", bytes,
                           available);
}

ops::KvLayout KvLayoutOf(const AttentionSpec& spec, DType dtype, int block_size,
                         ops::KvQuantization quantization) {
  const bool latent = spec.latent.kv_rank > 0;
  return {.dtype = ops::KvPoolDType(dtype),
          .kv_heads = static_cast<int>(latent ? spec.heads : spec.kv_heads),
          .key_dim = static_cast<int>(spec.head_dim),
          .value_dim = static_cast<int>(spec.value_dim),
          .block_size = block_size,
          .quantization = quantization};
}

namespace {

absl::StatusOr<KvPlan> PlanOwn(const Model& model, const KvPlanOptions& options) {
  if (options.block_size % 16 != 0 || options.block_size <= 0) {
    return InvalidArgument("block_size: {}, a multiple of 16 is needed", options.block_size);
  }
  KvPlan plan;
  const Decoder& decoder = model.decoder();
  for (size_t layer = 0; layer < model.spec().layers.size(); ++layer) {
    plan.layouts.push_back(KvLayoutOf(model.spec().layers[layer].attention, model.dtype(),
                                      options.block_size, options.quantization));
    int& heads = plan.layouts.back().kv_heads;
    // With fewer of them than ranks, each has a copy of the one that its queries need; other
    // stages' layers take no bytes here.
    heads = heads % decoder.part().tp == 0 ? heads / decoder.part().tp : 1;
    if (!decoder.holds(static_cast<int>(layer))) heads = 0;
  }
  const auto block_bytes = static_cast<int64_t>(KvBlockPool::BytesPerBlock(plan.layouts));
  const int64_t wanted =
      (options.context + options.block_size) / options.block_size * options.max_num_seqs;
  const bool given = options.kv_cache_memory_bytes > 0;
  const int64_t budget =
      given ? options.kv_cache_memory_bytes
            : PhysicalMemory() / 4 / static_cast<int64_t>(RanksOnHost(options.ranks));
  plan.blocks = given ? budget / block_bytes : std::min(wanted, budget / block_bytes);
  if (plan.blocks < 1) {
    return InvalidArgument("kv_cache_memory_bytes: {}, one block of {} tokens takes {}", budget,
                           options.block_size, block_bytes);
  }
  CADRE_RETURN_IF_ERROR(CheckKvMemory(options.kv_cache_memory_bytes,
                                      static_cast<size_t>(plan.blocks * block_bytes),
                                      options.ranks));
  return plan;
}

}  // namespace

absl::StatusOr<KvPlan> PlanKvCache(const Model& model, const KvPlanOptions& options) {
  absl::StatusOr<KvPlan> plan = PlanOwn(model, options);
  if (options.ranks == nullptr) return plan;
  CADRE_RETURN_IF_ERROR(options.ranks->Agree(plan.status(), {"KV cache"}));
  CADRE_ASSIGN_OR_RETURN(plan->blocks, options.ranks->Least(plan->blocks, {"KV cache"}));
  return plan;
}

absl::StatusOr<std::unique_ptr<KvTiers>> MakeKvTiers(std::span<const ops::KvLayout> layouts,
                                                     const KvTierOptions& options,
                                                     bool prefix_caching) {
  if (options.host_bytes == 0 && options.disk_bytes == 0) return std::unique_ptr<KvTiers>();
  if (!prefix_caching) {
    return InvalidArgument(
        "kv_host_cache_bytes, kv_disk_cache_bytes: they keep cached prefixes, and "
        "enable_prefix_caching is false");
  }
  if (options.disk_bytes > 0 && options.disk_path.empty())
    return InvalidArgument("kv_disk_cache_path: none, kv_disk_cache_bytes needs a folder");
  return KvTiers::Create(KvBlockPool::BytesPerBlock(layouts), options);
}

}  // namespace cadre
