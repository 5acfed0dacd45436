#include "training/training_ranks.h"

#include <algorithm>
#include <chrono>

#include "parallel/groups.h"

namespace cadre {

Axis ReductionAxis(const ParamBucket& bucket) {
  if (bucket.shared_by_stages) return Axis::kEmbedding;
  if (bucket.group == ParamGroup::kExpert) {
    return bucket.partial_gradient ? Axis::kEtpEdp : Axis::kEdp;
  }
  return bucket.partial_gradient ? Axis::kStage : Axis::kDpCp;
}

BucketParts PartsOf(const Layout& layout, int rank, const ParamBucket& bucket) {
  const Axis axis = ReductionAxis(bucket);
  const std::vector<int> ranks = ShardRanks(layout, axis, rank);
  const auto at = std::ranges::find(ranks, rank) - ranks.begin();
  const Shard all = {0, bucket.numel};
  // Stages are out of step: a table that two of them have cannot wait for both in every microbatch.
  const bool many = ranks.size() > 1 && axis != Axis::kEmbedding;
  const Shard shard = ShardOf(bucket.numel, static_cast<int>(ranks.size()), static_cast<int>(at));
  // Not the router's bias correction, which all ranks change alike and outside the optimizer.
  const bool weights = many && layout.zero_stage == 3 && bucket.trainable;
  const bool gradients = many && layout.zero_stage >= 2;
  return {.weights = weights ? shard : all,
          .gradients = gradients ? shard : all,
          .weights_shared = weights,
          .gradients_shared = gradients};
}

Shard SoleShard(const Layout& layout, int rank, const ParamBucket& bucket) {
  Shard shard{0, bucket.numel};
  const auto share_out = [&](const std::vector<int>& ranks) {
    if (ranks.empty()) return;
    const auto at = std::ranges::find(ranks, rank) - ranks.begin();
    const Shard part = ShardOf(shard.numel, static_cast<int>(ranks.size()), static_cast<int>(at));
    shard = {shard.begin + part.begin, part.numel};
  };
  const Axis axis = ReductionAxis(bucket);
  share_out(ShardRanks(layout, axis, rank));
  share_out(CopyRanks(layout, axis, rank));
  // Tensor-parallel ranks with the same tokens have the same gradients of what each has whole.
  const bool same = bucket.group == ParamGroup::kDense && !bucket.partial_gradient &&
                    bucket.tensor_spread == Spread::kReplicated;
  if (same && !layout.sequence_parallel) share_out(GroupRanks(layout, Axis::kTp, rank));
  return shard;
}

template <typename T>
absl::Status TrainingRanks::SumValues(Communicator* group, std::span<T> values,
                                      const OpLabel& label) {
  if (group == nullptr) return absl::OkStatus();
  const Tensor buffer = Tensor::Of<T>(allocator_, {static_cast<int64_t>(values.size())}, values);
  CADRE_RETURN_IF_ERROR(group->AllReduce(buffer, ReduceOp::kSum, label)->Wait());
  std::ranges::copy(buffer.span<T>(), values.begin());
  return absl::OkStatus();
}

absl::Status TrainingRanks::SumOverSamples(std::span<int64_t> values, const OpLabel& label) {
  return SumValues(mesh_.group(Axis::kDp), values, label);
}

absl::Status TrainingRanks::SumOverTargets(std::span<double> values, const OpLabel& label) {
  return SumValues(mesh_.group(Axis::kDpCp), values, label);
}

Communicator* TrainingRanks::TokensGroup() const {
  return mesh_.group(part().replicated_tokens() ? Axis::kDpCp : Axis::kStage);
}

absl::Status TrainingRanks::SumOverTokens(std::span<int64_t> values, const OpLabel& label) {
  return SumValues(TokensGroup(), values, label);
}

absl::Status TrainingRanks::SumOverTokens(std::span<double> values, const OpLabel& label) {
  return SumValues(TokensGroup(), values, label);
}

absl::Status TrainingRanks::SumOverStages(std::span<double> values, const OpLabel& label) {
  return SumValues(mesh_.group(Axis::kPp), values, label);
}

absl::StatusOr<double> TrainingRanks::MostOfStages(double mine, const OpLabel& label) {
  Communicator* group = mesh_.group(Axis::kPp);
  if (group == nullptr) return mine;
  const Tensor most = Tensor::Of<double>(allocator_, {1}, std::span(&mine, 1));
  CADRE_RETURN_IF_ERROR(group->AllReduce(most, ReduceOp::kMax, label)->Wait());
  return *most.data<double>();
}

absl::StatusOr<double> TrainingRanks::SumOverWorld(double mine, const OpLabel& label) {
  CADRE_RETURN_IF_ERROR(SumValues(mesh_.world(), std::span(&mine, 1), label));
  return mine;
}

absl::StatusOr<bool> TrainingRanks::Any(bool mine, const OpLabel& label) {
  if (mesh_.world() == nullptr) return mine;
  const Tensor flag = Tensor::Zeros(allocator_, {1}, DType::kI32);
  *flag.data<int32_t>() = mine ? 1 : 0;
  CADRE_RETURN_IF_ERROR(mesh_.world()->AllReduce(flag, ReduceOp::kMax, label)->Wait());
  return *flag.data<int32_t>() != 0;
}

absl::Status TrainingRanks::Meet(const OpLabel& label) {
  return mesh_.world() == nullptr ? absl::OkStatus() : mesh_.checkpoint()->Barrier(label)->Wait();
}

Communicator* TrainingRanks::ShardGroupOf(const ParamBucket& bucket) const {
  return mesh_.shard_group(ReductionAxis(bucket));
}

Communicator* TrainingRanks::CopyGroupOf(const ParamBucket& bucket) const {
  return mesh_.copy_group(ReductionAxis(bucket));
}

void TrainingRanks::Serve(ParameterStore& store, const StoreOptions& options) {
  store_ = &store;
  const auto group_of = [this](const ParamBucket& bucket) { return ShardGroupOf(bucket); };
  reducer_.emplace(
      store, GradientReducer::Options{
                 .group_of = group_of,
                 .copies_of = [this](const ParamBucket& bucket) { return CopyGroupOf(bucket); },
                 .scatter = layout().zero_stage >= 1});
  if (!gathers_weights()) return;
  weights_.emplace(store, *options.allocator,
                   ShardedWeights::Options{
                       .group_of = group_of,
                       .prefetch = options.prefetch,
                       .failed = [this](const absl::Status& status) { groups_.Record(status); }});
}

void TrainingRanks::Leave() {
  weights_.reset();
  reducer_.reset();
}

void TrainingRanks::BeginPasses(ShardedWeights::Passes passes) {
  if (weights_.has_value()) weights_->Begin(passes);
}

absl::Status TrainingRanks::EndPasses() {
  if (weights_.has_value()) weights_->End();
  return groups_.failure;
}

std::vector<Shard> TrainingRanks::OwnedShards() const {
  std::vector<Shard> shards;
  for (size_t b = 0; b < store_->buckets().size(); ++b) {
    shards.push_back(reducer_->shard(static_cast<int>(b)));
  }
  return shards;
}

std::vector<Shard> TrainingRanks::SoleShards() const {
  std::vector<Shard> shards;
  for (const ParamBucket& bucket : store_->buckets()) {
    shards.push_back(SoleShard(layout(), mesh_.rank(), bucket));
  }
  return shards;
}

absl::Status TrainingRanks::FinishGradients() {
  const absl::Status reduced = reducer_->Finish();
  absl::Status status = EndPasses();
  status.Update(reduced);
  return status;
}

absl::Status TrainingRanks::GatherWeights() {
  if (layout().zero_stage == 0) return absl::OkStatus();
  const auto start = std::chrono::steady_clock::now();
  std::vector<WorkPtr> works;
  for (const ParamBucket& bucket : store_->buckets()) {
    Communicator* group = bucket.gradients.defined() ? ShardGroupOf(bucket) : nullptr;
    if (group == nullptr || bucket.shares_weights()) continue;
    const Shard mine = ShardOf(bucket.numel, group->size(), group->rank());
    works.push_back(group->AllGatherV(bucket.weights.Narrow(mine.begin, mine.numel), bucket.weights,
                                      ShardSizes(bucket.numel, group->size()),
                                      {"weights", bucket.layer}));
  }
  absl::Status status;
  for (const WorkPtr& work : works) status.Update(work->Wait());
  gather_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return status;
}

double TrainingRanks::blocked_seconds() const {
  return gather_seconds_ + (reducer_.has_value() ? reducer_->blocked_seconds() : 0) +
         (weights_.has_value() ? weights_->blocked_seconds() : 0);
}

}  // namespace cadre
