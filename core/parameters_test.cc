#include "core/parameters.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"

namespace cadre {
namespace {

TEST(ParameterStore, ABucketIsReducedInOneWay) {
  HostAllocator allocator;
  ParameterStore store;
  store.Add({.name = "norm", .shape = {4}});
  store.Add({.name = "q", .shape = {4}, .tensor_spread = Spread::kSharded});
  store.Add({.name = "norm2", .shape = {4}});
  store.Add({.name = "partial", .shape = {4}, .partial_gradient = true});
  store.Add({.name = "k", .shape = {4}, .tensor_spread = Spread::kSharded});
  store.Allocate(allocator, DType::kF32, {.gradients = true});
  ASSERT_EQ(store.buckets().size(), 3u);
  EXPECT_EQ(store.buckets()[0].params, (std::vector<ParamId>{0, 2}));
  EXPECT_EQ(store.buckets()[1].params, (std::vector<ParamId>{1, 4}));
  EXPECT_EQ(store.buckets()[1].tensor_spread, Spread::kSharded);
  EXPECT_EQ(store.buckets()[2].params, (std::vector<ParamId>{3}));
  EXPECT_TRUE(store.buckets()[2].partial_gradient);
}

// The second half of each bucket.
BucketParts SecondHalf(const ParamBucket& bucket) {
  const Shard half = {bucket.numel / 2, bucket.numel - bucket.numel / 2};
  return {half, half, true, true};
}

// Hands a bucket out, all of it one value, and counts.
struct Halves : WeightGatherer {
  explicit Halves(Tensor all) : whole(std::move(all)) {}
  Tensor Acquire(int) override {
    ++acquired;
    return whole;
  }
  void Release(int) override { ++released; }
  Tensor whole;
  int acquired = 0, released = 0;
};

struct SharedStore {
  SharedStore() {
    for (const char* name : {"a", "b"}) store.Add({.name = name, .shape = {32}});
    store.Allocate(allocator, DType::kF32, {.gradients = true, .parts = SecondHalf});
  }
  HostAllocator allocator;
  ParameterStore store;
};

TEST(ParameterStore, SharedWeightsComeFromTheGatherer) {
  SharedStore s;
  EXPECT_EQ(s.store.buckets()[0].weights.numel(), 32);
  Halves gatherer(Tensor::Zeros(s.allocator, {64}, DType::kF32));
  for (int i = 0; i < 64; ++i) gatherer.whole.data<float>()[i] = static_cast<float>(i);
  s.store.set_gatherer(&gatherer);
  EXPECT_EQ(s.store.Acquire(0, Lease::kForward).data<float>()[31], 31);
  EXPECT_EQ(s.store.Acquire(1, Lease::kInputGrad).data<float>()[0], 32);
  s.store.Release(1, Lease::kInputGrad);
  s.store.Release(0, Lease::kForward);
  EXPECT_EQ(gatherer.acquired, 2);
  EXPECT_EQ(gatherer.released, 2);
}

TEST(ParameterStore, OfWhatIsWrittenTheOwnPartIsKept) {
  SharedStore s;  // no gatherer: writing needs no other rank
  for (ParamId id : {0, 1}) {
    const Tensor all = s.store.Acquire(id, Lease::kWrite);
    for (int i = 0; i < 32; ++i) all.data<float>()[i] = static_cast<float>(100 * id + i);
    s.store.Release(id, Lease::kWrite);
  }
  const ParamBucket& bucket = s.store.buckets()[0];
  for (int i = 0; i < 32; ++i) EXPECT_EQ(bucket.weights.data<float>()[i], 100 + i);
  EXPECT_EQ(*bucket.WeightsOf({40, 1}).data<float>(), 108);
}

TEST(ParameterStore, SharedGradientsAreTakenAfterEachPass) {
  SharedStore s;
  s.store.ExpectPasses(2);
  s.store.ExpectReports(0, 2);
  const size_t idle = s.allocator.usage().live_bytes;
  std::vector<bool> ready;
  std::vector<float> taken;
  s.store.set_bucket_ready([&](int bucket, bool last) {
    ready.push_back(last);
    taken.push_back(s.store.TakeGradients(bucket).data<float>()[5]);
  });
  for (int pass = 0; pass < 2; ++pass) {
    for (ParamId id : {0, 1, 0}) {
      s.store.Gradient(id).data<float>()[5] += 1;
      s.store.GradientAdded(id);
    }
    // Between passes the shard alone is there.
    EXPECT_EQ(s.allocator.usage().live_bytes, idle);
  }
  EXPECT_EQ(ready, (std::vector<bool>{false, true}));
  EXPECT_EQ(taken, (std::vector<float>{2, 2}));
  EXPECT_EQ(s.store.buckets()[0].gradients.numel(), 32);
}

}  // namespace
}  // namespace cadre
