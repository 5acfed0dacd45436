#include "core/parameters.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace cadre {

ParamId ParameterStore::Add(ParamSpec spec) {
  CADRE_CHECK(buckets_.empty(), "parameter {} added after the buckets were made", spec.name);
  CADRE_CHECK(Find(spec.name) == kNoParam, "parameter {} added twice", spec.name);
  specs_.push_back(std::move(spec));
  places_.emplace_back();
  return size() - 1;
}

void ParameterStore::KeepQuantized(const std::function<bool(const ParamSpec&)>& which) {
  CADRE_CHECK(buckets_.empty(), "quantized after the buckets were made");
  for (ParamSpec& spec : specs_) {
    spec.quantized = which(spec);
    if (spec.quantized) spec.trainable = false;
  }
}

int ParameterStore::BucketFor(ParamId id, DType compute) {
  const ParamSpec& spec = specs_[id];
  DType dtype = spec.fp32 && compute != DType::kF64 ? DType::kF32 : compute;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const ParamBucket& b = buckets_[i];
    if (b.layer == spec.layer && b.group == spec.group && b.decay == spec.decay &&
        b.dtype == dtype && b.trainable == spec.trainable &&
        b.tensor_spread == spec.tensor_spread && b.quantized == spec.quantized &&
        b.partial_gradient == spec.partial_gradient &&
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
                      .shared_by_stages = spec.shared_by_stages,
                      .quantized = spec.quantized});
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
  allocator_ = &allocator;
  quantize_ = std::move(options.quantize);
  for (ParamBucket& bucket : buckets_) {
    if (bucket.quantized) continue;
    const Shard all = {0, bucket.numel};
    bucket.parts = options.parts ? options.parts(bucket) : BucketParts{all, all};
    const Shape kept = {bucket.parts.weights.numel};
    bucket.weights = options.zeroed ? Tensor::Zeros(allocator, kept, bucket.dtype)
                                    : Tensor::Empty(allocator, kept, bucket.dtype);
    if (options.gradients && bucket.trainable) {
      bucket.gradients =
          Tensor::Zeros(allocator, {bucket.parts.gradients.numel}, bucket.gradient_dtype());
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

Tensor ParameterStore::Acquire(ParamId id, Lease lease) {
  Place& place = places_[id];
  const ParamBucket& bucket = buckets_[place.bucket];
  ++place.leases;
  CADRE_CHECK(!bucket.quantized || lease == Lease::kWrite, "{} has no floats", specs_[id].name);
  if (!bucket.shares_weights() && !bucket.quantized) return View(bucket.weights, id);
  if (lease == Lease::kWrite) {
    place.written = Tensor::Empty(*allocator_, specs_[id].shape, bucket.dtype);
    return place.written;
  }
  CADRE_CHECK(gatherer_ != nullptr, "{} is kept in part, and nobody gathers it", specs_[id].name);
  return View(gatherer_->Acquire(place.bucket), id);
}

void ParameterStore::Release(ParamId id, Lease lease) {
  Place& place = places_[id];
  CADRE_CHECK(place.leases > 0, "{} released more often than acquired", specs_[id].name);
  --place.leases;
  if (specs_[id].quantized) return SetQuantized(id, quantize_(std::exchange(place.written, {})));
  if (!buckets_[place.bucket].shares_weights()) return;
  if (lease == Lease::kWrite) {
    KeepWritten(id);
  } else {
    gatherer_->Release(place.bucket);
  }
}

void ParameterStore::KeepWritten(ParamId id) {
  Place& place = places_[id];
  const ParamBucket& bucket = buckets_[place.bucket];
  const Tensor written = std::exchange(place.written, Tensor());
  CADRE_CHECK(written.defined(), "{} is written by two at once", specs_[id].name);
  const Shard kept = bucket.parts.weights;
  const int64_t begin = std::max(kept.begin, place.offset);
  const int64_t end = std::min(kept.end(), place.offset + written.numel());
  if (begin >= end) return;
  const Tensor to = bucket.WeightsOf({begin, end - begin});
  const Tensor from = written.Reshape({written.numel()}).Narrow(begin - place.offset, end - begin);
  std::memcpy(to.raw(), from.raw(), to.bytes());
}

void ParameterStore::SetQuantized(ParamId id, QuantizedParam param) {
  CADRE_CHECK(specs_[id].quantized, "{} is kept in floats", specs_[id].name);
  places_[id].quantized = std::move(param);
}

size_t ParameterStore::quantized_bytes() const {
  size_t total = 0;
  for (const Place& place : places_) {
    for (const auto& matrix : place.quantized) {
      for (const QuantizedMatrix& rows : matrix) total += rows.bytes();
    }
  }
  return total;
}

bool ParameterStore::WantsGradient(ParamId id) const {
  return buckets_[places_[id].bucket].gradients.defined();
}

Tensor ParameterStore::Added(int bucket) {
  const ParamBucket& b = buckets_[bucket];
  if (!b.shares_gradients()) return b.gradients;
  Tensor& added = pending_[bucket].added;
  if (!added.defined()) added = Tensor::Zeros(*allocator_, {b.numel}, b.gradients.dtype());
  return added;
}

Tensor ParameterStore::Gradient(ParamId id) { return View(Added(places_[id].bucket), id); }

Tensor ParameterStore::TakeGradients(int bucket) {
  CADRE_CHECK(buckets_[bucket].shares_gradients(), "bucket {} keeps its gradients", bucket);
  Tensor taken = Added(bucket);
  pending_[bucket].added = Tensor();
  return taken;
}

int ParameterStore::ReportsOf(const ParamBucket& bucket) const {
  int reports = 0;
  for (const ParamId id : bucket.params) reports += places_[id].expected;
  return reports;
}

void ParameterStore::GradientAdded(ParamId id) {
  Place& place = places_[id];
  CADRE_CHECK(place.reports < place.expected * passes_, "{} reported more than {} gradients",
              specs_[id].name, place.expected * passes_);
  ++place.reports;
  const int bucket = place.bucket;
  Pending& pending = pending_[bucket];
  if (--pending.reports > 0) return;
  pending.reports = ReportsOf(buckets_[bucket]);
  const bool last = --pending.passes == 0;
  if (bucket_ready_) bucket_ready_(bucket, last);
}

void ParameterStore::ExpectReports(ParamId id, int reports) {
  pending_[places_[id].bucket].reports += reports - places_[id].expected;
  places_[id].expected = reports;
}

void ParameterStore::ExpectPasses(int passes) {
  for (Pending& pending : pending_) pending.passes += passes - passes_;
  passes_ = passes;
}

void ParameterStore::ZeroGradients() {
  for (Place& place : places_) place.reports = 0;
  pending_.assign(buckets_.size(), {});
  for (size_t b = 0; b < buckets_.size(); ++b) {
    pending_[b] = {.reports = ReportsOf(buckets_[b]), .passes = passes_};
    const Tensor& gradients = buckets_[b].gradients;
    if (gradients.defined()) std::memset(gradients.raw(), 0, gradients.bytes());
  }
}

}  // namespace cadre
