#include "core/parameters.h"

#include <cstring>

namespace cadre {

ParamId ParameterStore::Add(ParamSpec spec) {
  CADRE_CHECK(buckets_.empty(), "parameter {} added after the buckets were made", spec.name);
  CADRE_CHECK(Find(spec.name) == kNoParam, "parameter {} added twice", spec.name);
  specs_.push_back(std::move(spec));
  places_.emplace_back();
  return size() - 1;
}

int ParameterStore::BucketFor(ParamId id, DType compute) {
  const ParamSpec& spec = specs_[id];
  DType dtype = spec.fp32 && compute != DType::kF64 ? DType::kF32 : compute;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const ParamBucket& b = buckets_[i];
    if (b.layer == spec.layer && b.group == spec.group && b.decay == spec.decay &&
        b.dtype == dtype && b.trainable == spec.trainable &&
        b.tensor_spread == spec.tensor_spread && b.partial_gradient == spec.partial_gradient &&
        b.shared_by_stages == spec.shared_by_stages) {
      return static_cast<int>(i);
    }
  }
  buckets_.push_back({.dtype = dtype,
                      .decay = spec.decay,
                      .group = spec.group,
                      .layer = spec.layer,
                      .trainable = spec.trainable,
                      .tensor_spread = spec.tensor_spread,
                      .partial_gradient = spec.partial_gradient,
                      .shared_by_stages = spec.shared_by_stages});
  return static_cast<int>(buckets_.size()) - 1;
}

void ParameterStore::MakeBuckets(DType compute) {
  CADRE_CHECK(buckets_.empty(), "buckets made twice");
  // A parameter starts on a cache line, whatever the dtype.
  constexpr int64_t kAlignElements = 32;
  for (ParamId id = 0; id < size(); ++id) {
    int index = BucketFor(id, compute);
    ParamBucket& bucket = buckets_[index];
    places_[id].bucket = index;
    places_[id].offset = bucket.numel;
    bucket.params.push_back(id);
    bucket.offsets.push_back(bucket.numel);
    bucket.numel +=
        (specs_[id].shape.numel() + kAlignElements - 1) / kAlignElements * kAlignElements;
  }
}

void ParameterStore::Allocate(Allocator& allocator, DType compute, AllocateOptions options) {
  MakeBuckets(compute);
  for (ParamBucket& bucket : buckets_) {
    bucket.weights = Tensor::Zeros(allocator, {bucket.numel}, bucket.dtype);
    if (options.gradients && bucket.trainable) {
      bucket.gradients = Tensor::Zeros(allocator, {bucket.numel}, bucket.gradient_dtype());
    }
  }
  ZeroGradients();
}

ParamId ParameterStore::Find(const std::string& name) const {
  for (ParamId id = 0; id < size(); ++id) {
    if (specs_[id].name == name) return id;
  }
  return kNoParam;
}

int64_t ParameterStore::total_elements() const {
  int64_t total = 0;
  for (const ParamSpec& spec : specs_) total += spec.shape.numel();
  return total;
}

Tensor ParameterStore::View(const Tensor& flat, ParamId id) const {
  const Place& place = places_[id];
  CADRE_CHECK(flat.numel() == buckets_[place.bucket].numel);
  return flat.Narrow(place.offset, specs_[id].shape.numel()).Reshape(specs_[id].shape);
}

Tensor ParameterStore::Acquire(ParamId id, Lease) {
  ++places_[id].leases;
  return View(buckets_[places_[id].bucket].weights, id);
}

void ParameterStore::Release(ParamId id, Lease) {
  CADRE_CHECK(places_[id].leases > 0, "{} released more often than acquired", specs_[id].name);
  --places_[id].leases;
}

bool ParameterStore::WantsGradient(ParamId id) const {
  return buckets_[places_[id].bucket].gradients.defined();
}

Tensor ParameterStore::Gradient(ParamId id) {
  return View(buckets_[places_[id].bucket].gradients, id);
}

void ParameterStore::GradientAdded(ParamId id) {
  Place& place = places_[id];
  CADRE_CHECK(place.reports < place.expected, "{} reported more than {} gradients", specs_[id].name,
              place.expected);
  ++place.reports;
  if (--pending_[place.bucket] == 0 && bucket_ready_) bucket_ready_(place.bucket);
}

void ParameterStore::ExpectReports(ParamId id, int reports) {
  pending_[places_[id].bucket] += reports - places_[id].expected;
  places_[id].expected = reports;
}

void ParameterStore::ZeroGradients() {
  pending_.assign(buckets_.size(), 0);
  for (ParamId id = 0; id < size(); ++id) {
    places_[id].reports = 0;
    pending_[places_[id].bucket] += places_[id].expected;
  }
  for (ParamBucket& bucket : buckets_) {
    if (bucket.gradients.defined())
      std::memset(bucket.gradients.raw(), 0, bucket.gradients.bytes());
  }
}

}  // namespace cadre
