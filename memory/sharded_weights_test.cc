#include "memory/sharded_weights.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>
#include <string>

#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "core/tape.h"
#include "parallel/shard.h"
#include "parallel/test_ranks.h"

namespace cadre {
namespace {

constexpr int kRanks = 3, kLayers = 10;
constexpr int64_t kElements = 1024;  // of most parameters, each a bucket of its own
constexpr int64_t kSmall = 32;       // of one: a rank has all of it
constexpr int64_t kBytes = kElements * 4, kSmallBytes = kSmall * 4;
constexpr ParamId kEmbedding = 2 * kLayers, kHead = kEmbedding + 1, kNorm = kHead + 1;

float Value(ParamId id, int64_t i) { return static_cast<float>(1000 * id + i); }

// A layer is a norm and a matrix.
struct Rank {
  Rank(World& world, HostAllocator& memory, int prefetch) {
    std::vector<int> all(kRanks);
    std::iota(all.begin(), all.end(), 0);
    group = world.NewGroup("dp_cp", all);
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string name = std::to_string(layer);
      store.Add({.name = name, .shape = {kElements}, .layer = layer});
      store.Add({.name = name + " norm",
                 .shape = {kElements},
                 .decay = DecayKind::kNoDecay,
                 .layer = layer});
    }
    store.Add({.name = "embedding", .shape = {kElements}});
    store.Add({.name = "head", .shape = {kElements}, .decay = DecayKind::kNoDecay});
    store.Add({.name = "norm", .shape = {kSmall}, .layer = kLayers});
    const auto parts = [&](const ParamBucket& bucket) {
      const Shard shard = ShardOf(bucket.numel, kRanks, group->rank());
      return BucketParts{shard, shard, true, true};
    };
    store.Allocate(memory, DType::kF32, {.parts = parts});
    ctx = {.allocator = &memory, .parameters = &store};
    for (ParamId id = 0; id < store.size(); ++id) {
      LeasedWeight weight(ctx, id, Lease::kWrite);
      for (int64_t i = 0; i < weight.tensor().numel(); ++i) {
        weight.tensor().data<float>()[i] = Value(id, i);
      }
    }
    weights.emplace(store, memory,
                    ShardedWeights::Options{
                        .group_of = [this](const ParamBucket&) { return group.get(); },
                        .prefetch = prefetch,
                        .failed = [this](const absl::Status& status) { failure = status; }});
  }

  void Use(ParamId id, Lease lease) {
    LeasedWeight weight(ctx, id, lease);
    for (int64_t i = 0; i < weight.tensor().numel(); ++i) {
      ASSERT_EQ(weight.tensor().data<float>()[i], add + Value(id, i)) << store.spec(id).name;
    }
    first_bytes.push_back(weights->bytes());
  }
  void UseLayer(int layer, Lease lease) {
    // As attention and MLP take turns.
    for (int half = 0; half < 2; ++half) {
      for (const int which : {1, 0}) Use(2 * layer + which, lease);
    }
  }
  void Forward() {
    Use(kEmbedding, Lease::kForward);
    Use(kNorm, Lease::kForward);
    for (int layer = 0; layer < kLayers; ++layer) UseLayer(layer, Lease::kForward);
    Use(kHead, Lease::kForward);
  }
  void Backward() {
    for (int layer = kLayers - 1; layer >= 0; --layer) UseLayer(layer, Lease::kInputGrad);
  }
  void Step() {
    weights->Begin(ShardedWeights::Passes::kTraining);
    first_bytes.clear();
    for (int microbatch = 0; microbatch < 2; ++microbatch) {
      Forward();
      Backward();
    }
    weights->End();
  }
  void Evaluate(int microbatches = 2) {
    weights->Begin(ShardedWeights::Passes::kEvaluation);
    first_bytes.clear();
    for (int i = 0; i < microbatches; ++i) Forward();
    weights->End();
  }
  // As an optimizer: each rank its shard.
  void Update() {
    for (const ParamBucket& bucket : store.buckets()) {
      for (float& value : bucket.weights.span<float>()) value += 1;
    }
    ++add;
    store.WeightsChanged();
  }

  std::unique_ptr<Communicator> group;
  ParameterStore store;
  Context ctx;
  std::optional<ShardedWeights> weights;
  absl::Status failure;
  float add = 0;
  std::vector<int64_t> first_bytes;  // gathered by then, after each lease
};

// Two microbatches, each with the embedding, the head, and all layers on the way up and down.
constexpr int64_t kFirstStep = 2 * (kBytes * (2 + 2 * 2 * kLayers) + kSmallBytes);
// What comes next is known: the last layer stays while the head is used.
constexpr int64_t kLaterStep = kFirstStep - 2 * 2 * kBytes;

class ShardedWeightsTest : public testing::TestWithParam<int> {};

TEST_P(ShardedWeightsTest, EveryLeaseSeesTheWeightsOfAllRanks) {
  std::array<HostAllocator, kRanks> memory;
  RunRanks(kRanks, [&](World& world) {
    HostAllocator& mine = memory[static_cast<size_t>(world.rank())];
    Rank rank(world, mine, GetParam());
    const size_t shards = mine.usage().live_bytes;
    EXPECT_LE(shards, ((2 * kLayers + 2) * 384 + kSmall) * sizeof(float));
    for (int step = 0; step < 3; ++step) {
      rank.Step();
      EXPECT_EQ(mine.usage().live_bytes, shards);
      rank.Update();
      rank.Evaluate();
    }
    EXPECT_TRUE(rank.failure.ok());
    // The layer in use, those that follow it, and one more while a lease changes hands.
    EXPECT_LE(mine.usage().peak_bytes, shards + 2 * kBytes * (2 + GetParam()));
  });
}
INSTANTIATE_TEST_SUITE_P(Depths, ShardedWeightsTest, testing::Values(0, 1, 3));

TEST(ShardedWeights, WhatFollowedLastTimeIsUnderWay) {
  HostAllocator memory;
  RunRanks(kRanks, [&](World& world) {
    Rank rank(world, memory, 1);
    rank.Step();
    EXPECT_EQ(rank.weights->bytes(), kFirstStep);
    EXPECT_EQ(rank.first_bytes[0], kBytes);  // the embedding alone
    const int64_t before = rank.weights->bytes();
    rank.Step();
    // Layer 0 with the norm before it, layer 1 with the first lease of layer 0, ...
    EXPECT_EQ(rank.first_bytes[1] - before, 3 * kBytes + kSmallBytes);
    EXPECT_EQ(rank.first_bytes[2] - before, 5 * kBytes + kSmallBytes);
    EXPECT_EQ(rank.first_bytes[5] - before, 5 * kBytes + kSmallBytes);
    EXPECT_EQ(rank.first_bytes[6] - before, 7 * kBytes + kSmallBytes);
    // Nothing is gathered twice, and nothing past the step's end.
    EXPECT_EQ(rank.weights->bytes() - before, kLaterStep);
    // An evaluation between two steps changes no guess.
    rank.Evaluate();
    rank.Step();
    EXPECT_EQ(rank.first_bytes[2] - rank.first_bytes[1], 2 * kBytes);
    // One cut short is guessed as the long one before it, and leaves that guess to the next.
    for (const int microbatches : {1, 2}) {
      rank.Evaluate(microbatches);
      EXPECT_EQ(rank.first_bytes[2] - rank.first_bytes[1], 2 * kBytes) << microbatches;
      EXPECT_EQ(rank.first_bytes.back(), rank.weights->bytes()) << microbatches;
    }
  });
}

}  // namespace
}  // namespace cadre
