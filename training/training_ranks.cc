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

absl::StatusOr<int64_t> TrainingRanks::FromLeader(int64_t value, const OpLabel& label) {
  if (mesh_.world() == nullptr) return value;
  const Tensor said = Tensor::Zeros(allocator_, {1}, DType::kI64);
  *said.data<int64_t>() = value;
  CADRE_RETURN_IF_ERROR(mesh_.world()->Broadcast(said, 0, label)->Wait());
  return *said.data<int64_t>();
}

absl::Status TrainingRanks::Meet(const OpLabel& label) {
  return mesh_.world() == nullptr ? absl::OkStatus() : mesh_.world()->Barrier(label)->Wait();
}

Communicator* TrainingRanks::GroupOf(const ParamBucket& bucket) const {
  return mesh_.group(ReductionAxis(bucket));
}

BucketParts TrainingRanks::PartsOf(const ParamBucket& bucket) const {
  const Shard all = {0, bucket.numel};
  const Communicator* group = GroupOf(bucket);
  const Shard shard = ShardOf(bucket.numel, GroupSize(group), GroupRank(group));
  const bool shared = group != nullptr && layout().zero_stage >= 2;
  return {.weights = all, .gradients = shared ? shard : all, .gradients_shared = shared};
}

void TrainingRanks::ReduceGradients(ParameterStore& store) {
  store_ = &store;
  reducer_.emplace(store, GradientReducer::Options{
                              .group_of = [this](const ParamBucket& b) { return GroupOf(b); },
                              .scatter = layout().zero_stage >= 1});
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
    const Communicator* group = GroupOf(bucket);
    Shard shard = ShardOf(bucket.numel, GroupSize(group), GroupRank(group));
    // Tensor-parallel ranks with the same tokens have the same gradients of what each has whole.
    const bool copies = bucket.group == ParamGroup::kDense && !bucket.partial_gradient &&
                        bucket.tensor_spread == Spread::kReplicated;
    if (copies && part().replicated_tokens()) {
      const Shard part = ShardOf(shard.numel, layout().tp, mesh_.place().tp);
      shard = {shard.begin + part.begin, part.numel};
    }
    shards.push_back(shard);
  }
  return shards;
}

absl::Status TrainingRanks::FinishGradients() {
  const absl::Status reduced = reducer_->Finish();
  return groups_.failure.ok() ? reduced : groups_.failure;
}

absl::Status TrainingRanks::GatherWeights() {
  if (layout().zero_stage == 0) return absl::OkStatus();
  const auto start = std::chrono::steady_clock::now();
  std::vector<WorkPtr> works;
  for (const ParamBucket& bucket : store_->buckets()) {
    Communicator* group = bucket.gradients.defined() ? GroupOf(bucket) : nullptr;
    if (group == nullptr) continue;
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
  return gather_seconds_ + (reducer_.has_value() ? reducer_->blocked_seconds() : 0);
}

}  // namespace cadre
