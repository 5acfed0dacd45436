// Checkpoints written by several ranks under any cut of the parameters, and read under any other.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <numeric>

#include "core/file.h"
#include "parallel/agree.h"
#include "parallel/shard.h"
#include "parallel/test_ranks.h"
#include "training/checkpoint.h"
#include "training/checkpoint_grid_test_util.h"
#include "training/checkpoint_test_util.h"
#include "training/shared_folder.h"

namespace cadre {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::unique_ptr<Communicator> Everyone(World& world) {
  std::vector<int> ranks(static_cast<size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return world.NewGroup("checkpoint", ranks);
}

void SaveUnder(const Grid& grid, DType dtype, const std::string& root, int64_t step) {
  RunRanks(grid.ranks(), [&](World& world) {
    auto group = Everyone(world);
    Rank rank(grid, world.rank(), dtype);
    rank.Fill();
    const absl::Status saved = rank.Save(rank.Options(root, group.get()), step);
    EXPECT_TRUE(saved.ok()) << Message(saved);
  });
}

// Path inside the folder -> bytes.
std::map<std::string, std::string> FilesOf(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    files[entry.path().lexically_relative(folder)] = *ReadFile(entry.path());
  }
  return files;
}

TEST(CheckpointRanks, AnyCutWritesTheSameFilesAndReadsThem) {
  const std::string root = FreshFolder("ranks");
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
    const Grid whole(1, 0);
    Rank one(whole, 0, dtype);
    one.Fill();
    ASSERT_TRUE(one.Save(one.Options(root + "/one", nullptr), 5).ok());
    const auto expected = FilesOf(root + "/one/step-000005");
    ASSERT_TRUE(expected.contains("optimizer/exp_avg.safetensors.index.json"));
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      const Grid saved(static_cast<int>(seed % 5) + 1, seed);
      const std::string folder = fmt::format("{}/{}-{}", root, Name(dtype), seed);
      SaveUnder(saved, dtype, folder, 5);
      const auto files = FilesOf(folder + "/step-000005");
      ASSERT_EQ(files.size(), expected.size());
      for (const auto& [name, bytes] : expected) EXPECT_TRUE(files.at(name) == bytes) << name;
      const Grid loaded(static_cast<int>((seed + 2) % 5) + 1, seed + 100);
      for (int r = 0; r < loaded.ranks(); ++r) {
        Rank rank(loaded, r, dtype);
        const absl::Status status = rank.Load(folder);
        ASSERT_TRUE(status.ok()) << Message(status);
        rank.ExpectFilled();
      }
    }
  }
  std::filesystem::remove_all(root);
}

// Each bucket's state cut over the ranks as ZeRO cuts it, through the parameters and across them.
TEST(CheckpointRanks, OptimizersOfShardsSaveAndLoadWhatOneWould) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    const std::string root = FreshFolder("ranks_zero");
    TestRun one(dtype);
    for (int i = 0; i < 2; ++i) one.Step();
    ASSERT_TRUE(one.Save(root + "/one").ok());
    const auto expected = FilesOf(root + "/one/step-000002");
    auto shards = [](const ParameterStore& store, int ranks, int rank) {
      std::vector<Shard> all;
      for (const ParamBucket& bucket : store.buckets()) {
        all.push_back(ShardOf(bucket.numel, ranks, rank));
      }
      return all;
    };
    auto find = [](const std::string& folder) {
      return **FindGoodCheckpoint(folder, [](const std::string&) {});
    };
    RunRanks(3, [&](World& world) {
      auto group = Everyone(world);
      TestRun run(dtype);
      const std::vector<Shard> owned = shards(run.store, world.size(), world.rank());
      run.optimizer = *MakeOptimizer(run.config, run.store, run.allocator, owned);
      auto load = [&](const std::string& folder) { return run.LoadWholeWeights(folder); };
      ASSERT_TRUE(LoadCheckpoint(find(root + "/one"), run.model_config, load, run.store,
                                 *run.optimizer, owned)
                      .ok());
      run.step = 2;
      EXPECT_EQ(run.optimizer->updates(), 2);
      CheckpointSaverOptions options = run.SaverOptions(root + "/three");
      options.group = group.get();
      CheckpointSaver saver(options, run.store, StateOf(run.store, *run.optimizer, owned, owned),
                            run.allocator);
      CheckpointState state = run.State();
      state.weight_version = one.store.version();
      saver.Save(run.ctx, state);
      const absl::Status saved = saver.Wait();
      EXPECT_TRUE(saved.ok()) << Message(saved);
    });
    const auto files = FilesOf(root + "/three/step-000002");
    ASSERT_EQ(files.size(), expected.size());
    for (const auto& [name, bytes] : expected) EXPECT_TRUE(files.at(name) == bytes) << name;
    std::filesystem::remove_all(root);
  }
}

void FlipLastByte(const std::string& path) {
  std::string bytes = *ReadFile(path);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

TEST(CheckpointRanks, EachFileIsVerifiedByOneRankForAll) {
  const std::string root = FreshFolder("ranks_verify");
  const Grid grid(3, 5);
  for (const int64_t step : {1, 2}) SaveUnder(grid, DType::kBF16, root, step);
  const std::string newest = root + "/step-000002";
  RunRanks(3, [&](World& world) {
    auto group = Everyone(world);
    const auto find = [&](std::string* why) {
      const auto found = FindGoodCheckpoint(
          root, [why](const auto& line) { *why += line; }, group.get());
      EXPECT_TRUE(found.ok() && found->has_value()) << Message(found.status());
      return (*found)->manifest.state.step;
    };
    std::string why;
    EXPECT_EQ(find(&why), 2);
    EXPECT_EQ(why, "");
    const Manifest manifest = *ReadManifest(newest);
    ASSERT_GT(manifest.files.size(), 3);
    int verifier = 0;
    for (const auto& [name, file] : manifest.files) {
      const std::string path = newest + "/" + name;
      const auto flip = [&] {
        EXPECT_TRUE(Agree(*group, absl::OkStatus(), {"before"}).ok());
        if (world.rank() == 0) FlipLastByte(path);
        EXPECT_TRUE(Agree(*group, absl::OkStatus(), {"after"}).ok());
      };
      flip();
      why.clear();
      EXPECT_EQ(find(&why), 1);
      EXPECT_THAT(why, testing::StartsWith(fmt::format("rank {}: {}: checksum ", verifier, path)));
      flip();
      verifier = (verifier + 1) % 3;
    }
  });
  std::filesystem::remove_all(root);
}

TEST(CheckpointRanks, RanksThatAreLostPassNoCheckpointOver) {
  const std::string root = FreshFolder("ranks_verify_lost");
  const Grid grid(2, 5);
  SaveUnder(grid, DType::kBF16, root, 1);
  RunRanks(2, [&](World& world) {
    auto group = Everyone(world);
    if (world.rank() == 1) return;
    const auto found = FindGoodCheckpoint(
        root, [](const std::string& line) { ADD_FAILURE() << line; }, group.get());
    EXPECT_EQ(found.status().code(), absl::StatusCode::kUnavailable) << found.status();
  });
  std::filesystem::remove_all(root);
}

TEST(CheckpointRanks, AFolderThatARankHasForItselfIsNamed) {
  const std::string root = FreshFolder("ranks_shared");
  for (int r = 0; r < 3; ++r) std::filesystem::create_directories(fmt::format("{}/{}", root, r));
  RunRanks(3, [&](World& world) {
    auto group = Everyone(world);
    EXPECT_TRUE(CheckSharedFolder(group.get(), root + "/0").ok());
    const absl::Status apart =
        CheckSharedFolder(group.get(), world.rank() == 1 ? root + "/1" : root + "/0");
    EXPECT_EQ(apart.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(apart), HasSubstr(fmt::format("rank 1: {}/1: what rank 0 wrote", root)));
    const absl::Status none =
        CheckSharedFolder(group.get(), root + (world.rank() == 0 ? "/none" : "/0"));
    EXPECT_THAT(Message(none), HasSubstr("rank 0: "));
    ASSERT_TRUE(Agree(*group, absl::OkStatus(), {"looked"}).ok());
    EXPECT_THAT(NamesIn(root + "/0"), testing::IsEmpty());
  });
  std::filesystem::remove_all(root);
}

TEST(CheckpointRanks, ASharedFolderIsLeftCleanWhoeverIsLost) {
  const std::string root = FreshFolder("ranks_probe");
  std::filesystem::create_directories(root);
  const auto make = [&](const std::string& name) {
    const int file = open((root + "/" + name).c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    EXPECT_GE(file, 0);
    return file;
  };
  // Of a job that was killed, of one that runs, and not of a job.
  close(make(".shared-0123456789abcdef"));
  const int in_use = make(".shared-fedcba9876543210");
  ASSERT_EQ(flock(in_use, LOCK_EX), 0);
  close(make(".shared-notes"));
  RunRanks(2, [&](World& world) {
    auto group = Everyone(world);
    if (world.rank() == 1) return;
    EXPECT_EQ(CheckSharedFolder(group.get(), root).code(), absl::StatusCode::kUnavailable);
  });
  EXPECT_THAT(NamesIn(root), ElementsAre(".shared-fedcba9876543210", ".shared-notes"));
  close(in_use);
  std::filesystem::remove_all(root);
}

TEST(CheckpointRanks, AFailureOnOneRankFailsAllAndHarmsNothing) {
  const std::string root = FreshFolder("ranks_fault");
  const Grid grid(3, 4);
  SaveUnder(grid, DType::kBF16, root, 1);
  RunRanks(3, [&](World& world) {
    auto group = Everyone(world);
    Rank rank(grid, world.rank(), DType::kBF16);
    rank.Fill();
    CheckpointSaverOptions options = rank.Options(root, group.get());
    options.async = true;
    bool fail = true;
    auto save = options.save_weights;
    options.save_weights = [&, save](const std::string& folder, std::span<const ParamPiece> weights,
                                     Communicator* all) {
      CADRE_RETURN_IF_ERROR(save(folder, weights, all));
      return fail && world.rank() == 2 ? ResourceExhausted("{}: No space left on device", folder)
                                       : absl::OkStatus();
    };
    CheckpointSaver saver(options, rank.store(), rank.ToSave(), rank.allocator());
    const CheckpointState state{.step = 2, .config = "a: 1\n", .model_config = kModelConfig};
    saver.Save(rank.ctx(), state);
    const absl::Status status = saver.Wait();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(Message(status), HasSubstr("checkpoint of step 2 not saved: rank 2: "));
    if (world.rank() == 0) {
      EXPECT_THAT(NamesIn(root), ElementsAre("latest", "step-000001"));
    }
    ASSERT_TRUE(Agree(*group, absl::OkStatus(), {"looked"}).ok());
    fail = false;
    saver.Save(rank.ctx(), state);
    EXPECT_TRUE(saver.Wait().ok());
  });
  EXPECT_THAT(NamesIn(root), ElementsAre("latest", "step-000001", "step-000002"));
  std::filesystem::remove_all(root);
}

TEST(CheckpointRanks, WhatNobodyOrTwoHandInIsNamed) {
  const std::string root = FreshFolder("ranks_count");
  const Grid grid(2, 7);
  RunRanks(2, [&](World& world) {
    auto group = Everyone(world);
    Rank rank(grid, world.rank(), DType::kF32);
    rank.Fill();
    for (bool twice : {false, true}) {
      StatePart state = rank.ToSave();
      if (world.rank() == 1 && twice) state.weights.push_back(state.weights.front());
      if (world.rank() == 1 && !twice) state.weights.erase(state.weights.begin());
      CheckpointSaver saver(rank.Options(root, group.get()), rank.store(), state, rank.allocator());
      saver.Save(rank.ctx(), {.step = 1});
      const absl::Status status = saver.Wait();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(Message(status), HasSubstr("not saved: tensor "));
      EXPECT_THAT(Message(status), HasSubstr("the ranks hand in "));
    }
    // Different steps are noticed before anything is written.
    CheckpointSaver saver(rank.Options(root, group.get()), rank.store(), rank.ToSave(),
                          rank.allocator());
    saver.Save(rank.ctx(), {.step = 3 + world.rank()});
    EXPECT_THAT(Message(saver.Wait()), HasSubstr("rank 0 saves step 3"));
  });
  EXPECT_TRUE(NamesIn(root).empty());
  std::filesystem::remove_all(root);
}

TEST(CheckpointRanks, AFullDiskFailsAllRanks) {
  const std::string small = FreshFolder("ranks_full");
  std::filesystem::create_directory(small);
  if (mount("tmpfs", small.c_str(), "tmpfs", 0, "size=256k") != 0) {
    std::filesystem::remove_all(small);
    GTEST_SKIP() << "mounting a small tmpfs needs root";
  }
  const Grid grid(3, 9);
  std::atomic<int64_t> failed_step = -1;
  RunRanks(3, [&](World& world) {
    auto group = Everyone(world);
    Rank rank(grid, world.rank(), DType::kBF16);
    rank.Fill();
    for (int64_t step = 1; step < 64; ++step) {
      const absl::Status status = rank.Save(rank.Options(small, group.get()), step);
      if (status.ok()) continue;
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << Message(status);
      EXPECT_THAT(Message(status), HasSubstr("No space left on device"));
      failed_step = step;
      break;
    }
  });
  auto found = FindGoodCheckpoint(small, [](const std::string& line) { ADD_FAILURE() << line; });
  const std::vector<std::string> names = NamesIn(small);
  umount(small.c_str());
  std::filesystem::remove_all(small);
  ASSERT_TRUE(found.ok() && found->has_value());
  EXPECT_EQ((*found)->manifest.state.step, failed_step - 1);
  for (const std::string& name : names) EXPECT_FALSE(name.starts_with(".")) << name;
}

}  // namespace
}  // namespace cadre
