#include "training/adamw.h"

#include <cmath>

#include "core/parallel_for.h"
#include "proto/train_config.pb.h"
#include "training/adamw_kernels.h"
#include "training/gradient_norm.h"

namespace cadre {
namespace {

bool Decays(const ParamSpec& spec, config::DecayKind kind) {
  switch (kind) {
    case config::DECAY_KIND_MATRICES:
      return spec.decay == DecayKind::kDecay;
    case config::DECAY_KIND_MATRICES_AND_EMBEDDINGS:
      // Outside the layers only the embedding and the output projection are matrices.
      return spec.decay == DecayKind::kDecay || (spec.layer < 0 && spec.shape.rank() >= 2);
    case config::DECAY_KIND_ALL:
      return true;
  }
  return false;
}

template <typename T>
AdamWScalars<T> Scalars(const config::OptimizerConfig& config, const OptimizerStep& step,
                        int64_t updates, bool decays) {
  double t = static_cast<double>(updates);
  double wd = decays ? config.weight_decay() : 0.0;
  return {.gradient_scale = static_cast<T>(step.gradient_scale),
          .keep = static_cast<T>(1.0 - step.lr * wd),
          .beta1_rest = static_cast<T>(1.0 - config.beta1()),
          .beta2 = static_cast<T>(config.beta2()),
          .beta2_rest = static_cast<T>(1.0 - config.beta2()),
          .step_size = static_cast<T>(step.lr / (1.0 - std::pow(config.beta1(), t))),
          .root_bias2 = static_cast<T>(std::sqrt(1.0 - std::pow(config.beta2(), t))),
          .eps = static_cast<T>(config.eps())};
}

class AdamW final : public Optimizer {
 public:
  AdamW(const config::OptimizerConfig& config, ParameterStore& store, Allocator& allocator,
        std::vector<Shard> owned)
      : config_(config),
        store_(store),
        owned_(std::move(owned)),
        chunks_(TrainableChunks(store, owned_)) {
    for (size_t b = 0; b < store.buckets().size(); ++b) {
      const ParamBucket& bucket = store.buckets()[b];
      const Shape shape = {owned_[b].numel};
      Tensor& master = master_.emplace_back();
      Tensor& exp_avg = exp_avg_.emplace_back();
      Tensor& exp_avg_sq = exp_avg_sq_.emplace_back();
      if (!bucket.gradients.defined()) continue;
      CADRE_CHECK(bucket.dtype != DType::kF16, "f16 weights cannot be trained");
      DType dtype = bucket.gradients.dtype();
      exp_avg = Tensor::Zeros(allocator, shape, dtype);
      exp_avg_sq = Tensor::Zeros(allocator, shape, dtype);
      if (bucket.dtype == DType::kBF16) master = Tensor::Zeros(allocator, shape, dtype);
    }
    for (const ParamChunk& chunk : chunks_) {
      decays_.push_back(Decays(store.spec(chunk.param), config.decay()));
    }
    AdoptWeights();
  }

  void AdoptWeights() override {
    for (size_t b = 0; b < master_.size(); ++b) {
      if (!master_[b].defined()) continue;
      const BF16* weights = store_.buckets()[b].WeightsOf(owned_[b]).data<BF16>();
      for (int64_t i = 0; i < owned_[b].numel; ++i) {
        master_[b].data<float>()[i] = static_cast<float>(weights[i]);
      }
    }
  }

  void Step(Context& ctx, const OptimizerStep& step) override {
    ++updates_;
    const AdamWScalars<float> f32[] = {Scalars<float>(config_, step, updates_, false),
                                       Scalars<float>(config_, step, updates_, true)};
    const AdamWScalars<double> f64[] = {Scalars<double>(config_, step, updates_, false),
                                        Scalars<double>(config_, step, updates_, true)};
    ParallelFor(ctx, static_cast<int64_t>(chunks_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (store_.buckets()[chunks_[i].bucket].dtype == DType::kF64) {
          AdamWUpdate(Run<double>(chunks_[i]), f64[decays_[i]]);
        } else {
          AdamWUpdate(Run<float>(chunks_[i]), f32[decays_[i]]);
        }
      }
    });
    store_.WeightsChanged();
  }

  int64_t updates() const override { return updates_; }
  void set_updates(int64_t updates) override { updates_ = updates; }

  std::vector<OptimizerSlot> Slots() const override {
    return {{"master", master_}, {"exp_avg", exp_avg_}, {"exp_avg_sq", exp_avg_sq_}};
  }

 private:
  template <typename T>
  AdamWRun<T> Run(const ParamChunk& chunk) const {
    const ParamBucket& bucket = store_.buckets()[chunk.bucket];
    bool separate = master_[chunk.bucket].defined();
    const int64_t offset = chunk.offset - owned_[chunk.bucket].begin;  // in the state
    const Shard range = {chunk.offset, chunk.numel};
    const Tensor weights = bucket.WeightsOf(range);
    return {.gradient = bucket.GradientsOf(range).data<T>(),
            .weight = separate ? master_[chunk.bucket].data<T>() + offset : weights.data<T>(),
            .exp_avg = exp_avg_[chunk.bucket].data<T>() + offset,
            .exp_avg_sq = exp_avg_sq_[chunk.bucket].data<T>() + offset,
            .compute_weight = separate ? weights.data<BF16>() : nullptr,
            .n = chunk.numel};
  }

  config::OptimizerConfig config_;
  ParameterStore& store_;
  std::vector<Shard> owned_;  // by bucket
  std::vector<ParamChunk> chunks_;
  std::vector<bool> decays_;  // one per chunk
  std::vector<Tensor> master_, exp_avg_, exp_avg_sq_;
  int64_t updates_ = 0;
};

}  // namespace

std::unique_ptr<Optimizer> MakeAdamW(const config::OptimizerConfig& config, ParameterStore& store,
                                     Allocator& allocator, std::vector<Shard> owned) {
  return std::make_unique<AdamW>(config, store, allocator, std::move(owned));
}

int64_t AdamWStateBytes(int64_t elements, DType weight_dtype) {
  if (weight_dtype == DType::kF64) return elements * 16;
  return elements * (weight_dtype == DType::kBF16 ? 12 : 8);
}

}  // namespace cadre
