#include "memory/sharded_weights.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "parallel/shard.h"

namespace cadre {

ShardedWeights::ShardedWeights(ParameterStore& store, Allocator& allocator, Options options)
    : store_(store), allocator_(allocator), options_(std::move(options)) {
  gathered_.resize(store.buckets().size());
  store_.set_gatherer(this);
}

ShardedWeights::~ShardedWeights() {
  End();
  store_.set_gatherer(nullptr);
}

int ShardedWeights::LayerOf(int bucket) const {
  const int layer = store_.buckets()[static_cast<size_t>(bucket)].layer;
  return layer >= 0 ? layer : -1 - bucket;
}

Tensor ShardedWeights::Acquire(int bucket) {
  const int layer = LayerOf(bucket);
  if (visits_.empty() || visits_.back().layer != layer) StartVisit(layer);
  std::vector<int>& used = visits_.back().buckets;
  if (std::ranges::find(used, bucket) == used.end()) used.push_back(bucket);
  Gathered& gathered = gathered_[static_cast<size_t>(bucket)];
  ++gathered.leases;
  Start(bucket);
  Land(bucket);
  return gathered.all;
}

void ShardedWeights::Release(int bucket) {
  Gathered& gathered = gathered_[static_cast<size_t>(bucket)];
  CADRE_CHECK(gathered.leases > 0, "bucket {} released more often than acquired", bucket);
  --gathered.leases;
}

void ShardedWeights::StartVisit(int layer) {
  const std::vector<Visit>& last = recorded_[static_cast<size_t>(passes_)];
  const size_t at = visits_.size();
  visits_.push_back({.layer = layer});
  follows_ = follows_ && at < last.size() && last[at].layer == layer;
  if (!follows_) return DropAllBut(std::span(visits_).last(1));
  const size_t ahead = static_cast<size_t>(options_.prefetch) + 1;
  const std::span<const Visit> soon =
      std::span(last).subspan(at, std::min(ahead, last.size() - at));
  DropAllBut(soon);
  for (const Visit& visit : soon) {
    for (const int bucket : visit.buckets) Start(bucket);
  }
}

void ShardedWeights::DropAllBut(std::span<const Visit> kept) {
  for (size_t b = 0; b < gathered_.size(); ++b) {
    Gathered& gathered = gathered_[b];
    if (!gathered.all.defined() || gathered.leases > 0) continue;
    const int layer = LayerOf(static_cast<int>(b));
    if (std::ranges::find(kept, layer, &Visit::layer) != kept.end()) continue;
    Land(static_cast<int>(b));
    gathered.all = Tensor();
  }
}

void ShardedWeights::Start(int index) {
  Gathered& gathered = gathered_[static_cast<size_t>(index)];
  if (gathered.all.defined()) return;
  const ParamBucket& bucket = store_.buckets()[static_cast<size_t>(index)];
  Communicator* group = options_.group_of(bucket);
  gathered.all = Tensor::Empty(allocator_, {bucket.numel}, bucket.dtype);
  bytes_ += static_cast<int64_t>(gathered.all.bytes());
  gathered.work = group->AllGatherV(
      bucket.weights, gathered.all, ShardSizes(bucket.numel, group->size()),
      {bucket.group == ParamGroup::kExpert ? "expert weights" : "weights", bucket.layer});
}

void ShardedWeights::Land(int bucket) {
  using Clock = std::chrono::steady_clock;
  Gathered& gathered = gathered_[static_cast<size_t>(bucket)];
  const WorkPtr work = std::exchange(gathered.work, nullptr);
  if (work == nullptr) return;
  const Clock::time_point start = Clock::now();
  const absl::Status status = work->Wait();
  blocked_seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
  if (status.ok()) return;
  options_.failed(status);
  gathered.all = Tensor::Zeros(allocator_, gathered.all.shape(), gathered.all.dtype());
}

void ShardedWeights::Begin(Passes passes) {
  End();
  passes_ = passes;
  follows_ = true;
}

void ShardedWeights::End() {
  DropAllBut({});
  for (const Gathered& gathered : gathered_) {
    CADRE_CHECK(!gathered.all.defined(), "weights are leased between passes");
  }
  // Passes like the last ones tell nothing new, and shorter ones less.
  if (!follows_ && !visits_.empty()) recorded_[static_cast<size_t>(passes_)] = visits_;
  visits_.clear();
  follows_ = false;
}

}  // namespace cadre
