// Parameters: every weight of a model as a logical tensor, living in flat buckets.
//
// ParamSpec says what a parameter is; ParameterStore owns the buckets and leases views of them. One
// list serves initialization, gradients, optimizers, checkpoints, import and export.
//
//   ParameterStore store;
//   ParamId w = store.Add({.name = "model.norm.weight", .shape = {D}, ...});
//   store.Allocate(allocator, DType::kBF16, {.gradients = true});
//   Tensor weight = store.Acquire(w, Lease::kForward);   // compute dtype, [D]
//   ...
//   store.Release(w, Lease::kForward);
//
// Thread-safety: one thread at a time, except that acquired tensors may be read from any.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/quantized.h"
#include "core/tensor.h"

namespace cadre {

using ParamId = int32_t;
inline constexpr ParamId kNoParam = -1;

// Rows and columns of a source's logical form: [out, in] after index and layout, [n, 1] for a
// vector; dimensions before the last are rows. The whole by default.
struct ParamBlock {
  int64_t row_begin = 0;
  int64_t rows = -1;  // -1: up to the last
  int64_t column_begin = 0;
  int64_t columns = -1;
};

// A part of a Hugging Face tensor that fills a part of the parameter. A parameter's elements are
// its sources' blocks one after the other, each row by row: a rank's fused projection is its rows
// of q, of k and of v.
struct ParamSource {
  enum class Layout : uint8_t {
    kPlain,                  // as stored
    kTransposed,             // stored [in, out], used as [out, in]
    kTransposedInterleaved,  // stored [in, 2*I] with gate and up in turn, used as [gate rows; up
                             // rows]
    kInterleavedVector,      // stored [2*I] with gate and up in turn, used as [gate; up]
  };
  std::string tensor;  // name in the Hugging Face folder
  Shape shape;         // of the stored tensor, whole
  int64_t index = -1;  // first-dimension slice of the stored tensor (fused experts), -1: whole
  Layout layout = Layout::kPlain;
  ParamBlock block;  // what this rank holds of it
};

enum class DecayKind : uint8_t {
  kDecay,
  kNoDecay
};  // matrices decay; norms, biases, embeddings not
enum class ParamGroup : uint8_t { kDense, kExpert };
// Over the tensor-parallel group: whole on every rank, or cut among them.
enum class Spread : uint8_t { kReplicated, kSharded };

// What a parameter does, where that decides how it may be kept.
enum class ParamUse : uint8_t { kOther, kProjection, kHead };

struct Initializer {
  enum class Kind : uint8_t { kNormal, kOnes, kZeros };
  Kind kind = Kind::kZeros;
  double stddev = 0.0;
};

struct ParamSpec {
  std::string name;  // unique; Hugging Face's where one tensor is one parameter
  Shape shape;       // of what this rank holds
  std::vector<ParamSource> sources;
  Initializer init;
  DecayKind decay = DecayKind::kDecay;
  ParamGroup group = ParamGroup::kDense;
  int layer = -1;         // -1: outside the layers
  bool trainable = true;  // false: no gradient, no optimizer state
  bool fp32 = false;      // kept in fp32 whatever the compute dtype (router bias correction)
  ParamUse use = ParamUse::kOther;
  bool quantized = false;  // kept as integers (quantized()); not trainable
  Spread tensor_spread = Spread::kReplicated;
  // Each rank of the tensor-parallel group has a part of the gradient's sum (a replicated parameter
  // that sees its rank's tokens alone).
  bool partial_gradient = false;
  // The first and the last pipeline stage both have it, each with a part of the gradient's sum (a
  // tied table).
  bool shared_by_stages = false;
};

// Why a parameter is leased; a store that gathers weights on demand keeps them for as long as a
// lease is out. kWrite: every element will be written and none read, which needs no other rank.
enum class Lease : uint8_t { kForward, kInputGrad, kWeightGrad, kWrite };

// A run of a bucket's elements.
struct Shard {
  int64_t begin = 0;
  int64_t numel = 0;
  int64_t end() const { return begin + numel; }
};

// What a store keeps of a bucket, and whether that is its part of what ranks share out (ZeRO): one
// of them may have all of a small bucket, and the others nothing.
struct BucketParts {
  Shard weights, gradients;
  bool weights_shared = false, gradients_shared = false;
};

// Parameters of one (layer, group, decay kind, dtype, trainable, spread, partial gradient, shared
// by stages, quantized), end to end in one allocation.
struct ParamBucket {
  std::vector<ParamId> params;
  std::vector<int64_t> offsets;  // in elements, one per parameter
  int64_t numel = 0;
  DType dtype = DType::kF32;
  DecayKind decay = DecayKind::kDecay;
  ParamGroup group = ParamGroup::kDense;
  int layer = -1;
  bool trainable = true;
  Spread tensor_spread = Spread::kReplicated;
  bool partial_gradient = false;
  bool shared_by_stages = false;
  bool quantized = false;  // has no memory: the store keeps such parameters one by one
  BucketParts parts;       // of the elements [0, numel), what the two tensors below have
  Tensor weights;          // [parts.weights.numel] in dtype
  Tensor gradients;  // [parts.gradients.numel] in gradient_dtype(); undefined without gradients

  DType gradient_dtype() const { return dtype == DType::kF64 ? DType::kF64 : DType::kF32; }
  bool shares_weights() const { return parts.weights_shared; }
  bool shares_gradients() const { return gradients.defined() && parts.gradients_shared; }
  // Elements `range` of the bucket, which must lie in what is kept.
  Tensor WeightsOf(const Shard& range) const {
    return weights.Narrow(range.begin - parts.weights.begin, range.numel);
  }
  Tensor GradientsOf(const Shard& range) const {
    return gradients.Narrow(range.begin - parts.gradients.begin, range.numel);
  }
};

// Brings together, for as long as they are leased, the weights of buckets that a store keeps in
// part. Used by the store's thread.
class WeightGatherer {
 public:
  virtual ~WeightGatherer() = default;
  // All of a bucket, [numel], good until as many releases as there were acquisitions.
  virtual Tensor Acquire(int bucket) = 0;
  virtual void Release(int bucket) = 0;
};

class ParameterStore {
 public:
  // What of a bucket to keep; `weights` and `gradients` are not there yet.
  using PartsOf = std::function<BucketParts(const ParamBucket&)>;
  // Integers for a parameter's floats (compute dtype, spec's shape).
  using Quantize = std::function<QuantizedParam(const Tensor&)>;
  struct AllocateOptions {
    bool gradients = false;
    bool zeroed = true;  // false: weights are anything until they are written
    PartsOf parts;       // all where absent
    Quantize quantize;   // called as a parameter that is kept quantized is released after writing
  };
  // Called when the last weight closure that a bucket waits for in a backward pass has run. `last`:
  // in the last of the passes that are expected.
  using BucketReady = std::function<void(int bucket, bool last)>;

  ParamId Add(ParamSpec spec);
  // Parameters that `which` accepts will be kept as integers, without gradients; before the buckets
  // are made.
  void KeepQuantized(const std::function<bool(const ParamSpec&)>& which);
  // Lays the parameters out in buckets, without memory for them: what a plan counts. After this no
  // parameter can be added.
  void MakeBuckets(DType compute);
  // MakeBuckets, and memory for them. Weights and gradients start at zero. The allocator outlives
  // the store.
  void Allocate(Allocator& allocator, DType compute, AllocateOptions options);

  // Other ranks hold tensors of the model that this store has not, or not whole.
  void set_part() { part_ = true; }
  bool part() const { return part_; }

  int size() const { return static_cast<int>(specs_.size()); }
  const ParamSpec& spec(ParamId id) const { return specs_[id]; }
  // kNoParam where no parameter has this name.
  ParamId Find(const std::string& name) const;
  int64_t total_elements() const;

  // compute dtype, spec's shape; of a quantized parameter for kWrite alone.
  Tensor Acquire(ParamId id, Lease lease);
  void Release(ParamId id, Lease lease);
  // The integers of a quantized parameter, good until they are set anew; null for another one.
  const QuantizedParam* quantized(ParamId id) const {
    return specs_[id].quantized ? &places_[id].quantized : nullptr;
  }
  void SetQuantized(ParamId id, QuantizedParam param);
  // Bytes that quantized parameters take.
  size_t quantized_bytes() const;
  // Whether weight gradients of `id` are wanted.
  bool WantsGradient(ParamId id) const;
  // fp32 or f64, spec's shape; weight closures add to it. Of a bucket whose gradients are shared
  // out it is what was added since TakeGradients.
  Tensor Gradient(ParamId id);
  // Each weight closure reports each of its parameters once, an expert without tokens included.
  void GradientAdded(ParamId id);

  // How many reports a parameter makes in a backward pass, and how many passes follow one
  // ZeroGradients: one each unless told. Reports of different passes count alike.
  void ExpectReports(ParamId id, int reports);
  void ExpectPasses(int passes);
  void set_bucket_ready(BucketReady ready) { bucket_ready_ = std::move(ready); }
  // Of a bucket whose gradients are shared out: [numel], what weight closures added to all of it
  // since the last call. The store keeps none of it; adding the ranks' sum to bucket.gradients is
  // the caller's part.
  Tensor TakeGradients(int bucket);
  void ZeroGradients();

  // For buckets that share their weights out; outlives the store, or null.
  void set_gatherer(WeightGatherer* gatherer) { gatherer_ = gatherer; }

  const std::vector<ParamBucket>& buckets() const { return buckets_; }
  int bucket_of(ParamId id) const { return places_[id].bucket; }
  int64_t offset_of(ParamId id) const { return places_[id].offset; }  // in its bucket
  Tensor View(const Tensor& flat, ParamId id) const;  // id's part of a bucket-shaped [numel] tensor

  // Counts changes of the weights; packed copies are keyed by it.
  uint64_t version() const { return version_; }
  void WeightsChanged() { ++version_; }
  // The version that loaded weights had when they were saved; before any product with them.
  void RestoreVersion(uint64_t version) { version_ = version; }

 private:
  struct Place {
    int bucket = -1;
    int64_t offset = 0;
    int leases = 0;
    int reports = 0;
    int expected = 1;  // reports in a pass
    Tensor written;    // under a lease for writing, where the bucket has not all of its floats
    QuantizedParam quantized;
  };
  // What is still missing of a bucket.
  struct Pending {
    int reports = 0;  // in this pass
    int passes = 0;   // this one included
    Tensor added;     // gradients of shared buckets; undefined before the first use
  };
  int BucketFor(ParamId id, DType compute);
  int ReportsOf(const ParamBucket& bucket) const;
  Tensor Added(int bucket);
  void KeepWritten(ParamId id);

  std::vector<ParamSpec> specs_;
  std::vector<Place> places_;
  std::vector<ParamBucket> buckets_;
  std::vector<Pending> pending_;  // by bucket
  int passes_ = 1;
  Allocator* allocator_ = nullptr;
  Quantize quantize_;
  WeightGatherer* gatherer_ = nullptr;
  BucketReady bucket_ready_;
  uint64_t version_ = 1;
  bool part_ = false;
};

}  // namespace cadre
