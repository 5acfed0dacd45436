#include "parallel/gradient_reducer.h"

#include <array>
#include <numeric>

#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "parallel/test_ranks.h"

namespace cadre {
namespace {

constexpr int kRanks = 4, kLayers = 12, kPasses = 3;
constexpr int64_t kElements = 1000;  // of a layer: shards of 256
constexpr int64_t kBucketBytes = 1024 * 4;

// Integers, so that the sum does not depend on its order.
float Part(int rank, int pass, int layer, int64_t i) {
  return static_cast<float>(1 + rank + 10 * pass + 100 * layer + i % 7);
}
float Sum(int layer, int64_t i) {
  float sum = 0;
  for (int rank = 0; rank < kRanks; ++rank) {
    for (int pass = 0; pass < kPasses; ++pass) sum += Part(rank, pass, layer, i);
  }
  return sum;
}

struct Rank {
  Rank(World& world, HostAllocator& memory, bool shared) {
    std::vector<int> all(kRanks);
    std::iota(all.begin(), all.end(), 0);
    group = world.NewGroup("dp_cp", all);
    for (int layer = 0; layer < kLayers; ++layer) {
      store.Add({.name = std::to_string(layer), .shape = {kElements}, .layer = layer});
    }
    // One rank has all of it.
    store.Add({.name = "small", .shape = {1}});
    const auto parts = [&](const ParamBucket& bucket) {
      const Shard whole = {0, bucket.numel};
      const Shard mine = ShardOf(bucket.numel, kRanks, group->rank());
      return BucketParts{whole, shared ? mine : whole, false, shared};
    };
    store.Allocate(memory, DType::kF32, {.gradients = true, .parts = parts});
    store.ExpectPasses(kPasses);
    reducer.emplace(store, GradientReducer::Options{
                               .group_of = [this](const ParamBucket&) { return group.get(); },
                               .scatter = true});
  }

  void Backward() {
    for (int pass = 0; pass < kPasses; ++pass) {
      for (int layer = kLayers - 1; layer >= 0; --layer) {
        const std::span<float> gradient = store.Gradient(layer).span<float>();
        for (int64_t i = 0; i < kElements; ++i) gradient[i] += Part(group->rank(), pass, layer, i);
        store.GradientAdded(layer);
      }
      store.Gradient(kLayers).data<float>()[0] += 1;
      store.GradientAdded(kLayers);
    }
  }

  void ExpectSums() {
    for (int layer = 0; layer < kLayers; ++layer) {
      const Shard mine = reducer->shard(layer);
      const Tensor sums = store.buckets()[static_cast<size_t>(layer)].GradientsOf(mine);
      for (int64_t i = 0; i < std::min(mine.numel, kElements - mine.begin); ++i) {
        ASSERT_EQ(sums.data<float>()[i], Sum(layer, mine.begin + i)) << layer << " " << i;
      }
    }
    const Shard mine = reducer->shard(kLayers);
    if (mine.numel == 0) return;
    const Tensor small = store.buckets()[kLayers].GradientsOf(mine);
    EXPECT_EQ(small.data<float>()[0], kRanks * kPasses);
  }

  std::unique_ptr<Communicator> group;
  ParameterStore store;
  std::optional<GradientReducer> reducer;
};

// What a rank had in tensors at the most, beside its weights.
std::array<size_t, kRanks> PeakOfGradients(bool shared) {
  std::array<HostAllocator, kRanks> memory;
  std::array<size_t, kRanks> peaks{};
  RunRanks(kRanks, [&](World& world) {
    const auto at = static_cast<size_t>(world.rank());
    Rank rank(world, memory[at], shared);
    for (int step = 0; step < 2; ++step) {
      rank.store.ZeroGradients();
      rank.Backward();
      ASSERT_TRUE(rank.reducer->Finish().ok());
      rank.ExpectSums();
    }
    const size_t small = (shared ? 3 : 2) * 128;  // weight, gradient, and that of a pass
    peaks[at] = memory[at].usage().peak_bytes - kLayers * kBucketBytes - small;
  });
  return peaks;
}

TEST(GradientReducer, PassesAddUpAndASharedBucketIsWholeForItsPassAlone) {
  constexpr size_t kShards = kLayers * kBucketBytes / kRanks;
  // One is being added to while others are on their way.
  constexpr size_t kWhole = (GradientReducer::kMaxInFlight + 1) * kBucketBytes;
  for (const size_t peak : PeakOfGradients(true)) EXPECT_LE(peak, kShards + kWhole);
  for (const size_t peak : PeakOfGradients(false)) EXPECT_GE(peak, kLayers * kBucketBytes);
}

}  // namespace
}  // namespace cadre
