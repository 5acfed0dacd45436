#include "parallel/gradient_reducer.h"

#include <chrono>

namespace cadre {
namespace {

using Clock = std::chrono::steady_clock;

std::string_view Kind(const ParamBucket& bucket) {
  return bucket.group == ParamGroup::kExpert ? "expert gradients" : "gradients";
}

}  // namespace

GradientReducer::GradientReducer(ParameterStore& store, Options options)
    : store_(store), options_(std::move(options)) {
  for (const ParamBucket& bucket : store.buckets()) {
    Communicator* group = bucket.gradients.defined() ? options_.group_of(bucket) : nullptr;
    groups_.push_back(group != nullptr && group->size() > 1 ? group : nullptr);
  }
  works_.resize(groups_.size());
  store_.set_bucket_ready([this](int bucket) { Start(bucket); });
}

GradientReducer::~GradientReducer() { store_.set_bucket_ready(nullptr); }

Shard GradientReducer::shard(int bucket) const {
  const int64_t numel = store_.buckets()[static_cast<size_t>(bucket)].numel;
  const Communicator* group = groups_[static_cast<size_t>(bucket)];
  if (group == nullptr || !options_.scatter) return {0, numel};
  return ShardOf(numel, group->size(), group->rank());
}

void GradientReducer::Start(int index) {
  Communicator* group = groups_[static_cast<size_t>(index)];
  if (group == nullptr) return;
  const ParamBucket& bucket = store_.buckets()[static_cast<size_t>(index)];
  const OpLabel label = {Kind(bucket), bucket.layer};
  WorkPtr& work = works_[static_cast<size_t>(index)];
  CADRE_CHECK(work == nullptr, "bucket {} was completed twice", index);
  bytes_ += static_cast<int64_t>(bucket.gradients.bytes());
  if (!options_.scatter) {
    work = group->AllReduce(bucket.gradients, ReduceOp::kSum, label);
    return;
  }
  const Shard mine = shard(index);
  work = group->ReduceScatterV(bucket.gradients, bucket.gradients.Narrow(mine.begin, mine.numel),
                               ShardSizes(bucket.numel, group->size()), ReduceOp::kSum, label);
}

absl::Status GradientReducer::Finish() {
  const Clock::time_point start = Clock::now();
  absl::Status status;
  for (size_t i = 0; i < works_.size(); ++i) {
    if (groups_[i] == nullptr) continue;
    CADRE_CHECK(works_[i] != nullptr, "bucket {} is not complete", i);
    if (const absl::Status one = works_[i]->Wait(); status.ok()) status = one;
    works_[i] = nullptr;
  }
  blocked_seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
  bytes_ = 0;
  return status;
}

}  // namespace cadre
