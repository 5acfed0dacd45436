#include "parallel/gradient_reducer.h"

#include <array>
#include <chrono>

#include "parallel/reduce.h"

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
    copies_.push_back(options_.copies_of && bucket.gradients.defined() ? options_.copies_of(bucket)
                                                                       : nullptr);
  }
  works_.resize(groups_.size());
  complete_.resize(groups_.size());
  store_.set_bucket_ready([this](int bucket, bool last) {
    complete_[static_cast<size_t>(bucket)] = last;
    if (store_.buckets()[static_cast<size_t>(bucket)].shares_gradients()) {
      StartPass(bucket);
    } else if (last) {
      Start(bucket);
    }
  });
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
  const OpLabel label = {Kind(bucket), bucket.layer, index};
  WorkPtr& work = works_[static_cast<size_t>(index)];
  bytes_ += static_cast<int64_t>(bucket.gradients.bytes());
  if (!options_.scatter) {
    work = group->AllReduce(bucket.gradients, ReduceOp::kSum, label);
    return;
  }
  const Shard mine = shard(index);
  work = group->ReduceScatterV(bucket.gradients, bucket.gradients.Narrow(mine.begin, mine.numel),
                               ShardSizes(bucket.numel, group->size()), ReduceOp::kSum, label);
}

void GradientReducer::StartPass(int index) {
  if (in_flight_.size() == kMaxInFlight) LandOldest();
  const ParamBucket& bucket = store_.buckets()[static_cast<size_t>(index)];
  Communicator* group = groups_[static_cast<size_t>(index)];
  const Tensor all = store_.TakeGradients(index);
  const Shard kept = bucket.parts.gradients;
  const Tensor mine = all.Narrow(kept.begin, kept.numel);
  bytes_ += static_cast<int64_t>(all.bytes());
  WorkPtr work = group->ReduceScatterV(all, mine, ShardSizes(bucket.numel, group->size()),
                                       ReduceOp::kSum, {Kind(bucket), bucket.layer, index});
  in_flight_.push_back({index, mine, std::move(work)});
}

void GradientReducer::LandOldest() {
  const Clock::time_point start = Clock::now();
  const PassSum sum = std::move(in_flight_.front());
  in_flight_.pop_front();
  pass_status_.Update(sum.work->Wait());
  blocked_seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
  const Tensor& total = store_.buckets()[static_cast<size_t>(sum.bucket)].gradients;
  const std::array<const std::byte*, 2> both = {total.raw(), sum.mine.raw()};
  ReduceInRankOrder(total.dtype(), ReduceOp::kSum, both, total.numel(), total.raw());
}

absl::Status GradientReducer::SumCopies() {
  std::vector<WorkPtr> works;
  for (size_t b = 0; b < copies_.size(); ++b) {
    if (copies_[b] == nullptr) continue;
    CADRE_CHECK(complete_[b], "bucket {} is not complete", b);
    const ParamBucket& bucket = store_.buckets()[b];
    const Tensor mine = bucket.GradientsOf(shard(static_cast<int>(b)));
    bytes_ += static_cast<int64_t>(mine.bytes());
    works.push_back(copies_[b]->AllReduce(mine, ReduceOp::kSum,
                                          {Kind(bucket), bucket.layer, static_cast<int>(b)}));
  }
  absl::Status status;
  for (const WorkPtr& work : works) status.Update(work->Wait());
  return status;
}

absl::Status GradientReducer::Finish() {
  while (!in_flight_.empty()) LandOldest();
  const Clock::time_point start = Clock::now();
  absl::Status status = std::exchange(pass_status_, absl::OkStatus());
  for (size_t i = 0; i < works_.size(); ++i) {
    if (groups_[i] == nullptr) continue;
    CADRE_CHECK(complete_[i], "bucket {} is not complete", i);
    if (works_[i] != nullptr) status.Update(works_[i]->Wait());
    works_[i] = nullptr;
  }
  status.Update(SumCopies());
  complete_.assign(complete_.size(), false);
  blocked_seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
  bytes_ = 0;
  return status;
}

}  // namespace cadre
