// Checkpoints written by several ranks under any cut of the parameters, and read under any other.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <map>
#include <numeric>
#include <random>

#include "core/file.h"
#include "model/hf_config.h"
#include "model/hf_folder.h"
#include "parallel/agree.h"
#include "parallel/test_ranks.h"
#include "training/checkpoint.h"
#include "training/checkpoint_test_util.h"

namespace cadre {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Layout = ParamSource::Layout;

constexpr char kModelConfig[] = "model_type: test\n";
constexpr int64_t kShardBytes = 700;

// One of every kind of source.
std::vector<ParamSpec> WholeSpecs() {
  auto experts = [](const std::string& name, const Shape& stored, const Shape& used,
                    Layout layout) {
    ParamSpec spec{.name = name, .shape = used, .group = ParamGroup::kExpert, .layer = 1};
    for (int64_t e = 0; e < stored[0]; ++e) spec.sources.push_back({name, stored, e, layout});
    return spec;
  };
  return {{.name = "embed", .shape = {37, 5}, .sources = {{"embed", {37, 5}}}},
          {.name = "qkv",
           .shape = {20, 10},
           .sources = {{"q", {12, 10}}, {"k", {4, 10}}, {"v", {4, 10}}},
           .layer = 0},
          {.name = "o", .shape = {10, 12}, .sources = {{"o", {10, 12}}}, .layer = 0},
          {.name = "norm", .shape = {70}, .sources = {{"norm", {70}}}, .layer = 0},
          {.name = "frozen",
           .shape = {9},
           .sources = {{"frozen", {9}}},
           .layer = 0,
           .trainable = false},
          {.name = "router_bias",
           .shape = {4},
           .sources = {{"router_bias", {4}}},
           .layer = 1,
           .trainable = false,
           .fp32 = true},
          experts("gate_up", {4, 10, 6}, {4, 6, 10}, Layout::kTransposedInterleaved),
          experts("gate_up_bias", {4, 6}, {4, 6}, Layout::kInterleavedVector),
          experts("down", {4, 3, 10}, {4, 10, 3}, Layout::kTransposed)};
}

enum class Cut { kRows, kColumns, kSources, kReplicated, kSharded };  // sharded: as ZeRO does

// How each parameter lies on `ranks` ranks: a function of the seed, the same on all of them.
class Grid {
 public:
  Grid(int ranks, uint64_t seed) : ranks_(ranks), engine_(seed) {
    for (ParamSpec& whole : WholeSpecs()) {
      constexpr Cut kMatrix[] = {Cut::kRows, Cut::kColumns, Cut::kReplicated, Cut::kSharded};
      constexpr Cut kExperts[] = {Cut::kRows, Cut::kColumns, Cut::kSources, Cut::kSharded};
      constexpr Cut kVector[] = {Cut::kRows, Cut::kReplicated, Cut::kSharded};
      const bool experts = whole.sources.size() == 4;
      const bool vector = whole.shape.rank() == 1 || whole.name == "gate_up_bias";
      Cut cut = vector ? kVector[Below(3)] : experts ? kExperts[Below(4)] : kMatrix[Below(4)];
      cuts_.push_back(cut);
      CutSpec(whole, cut);
    }
  }

  int ranks() const { return ranks_; }
  Cut cut(const std::string& name) const {
    const std::vector<ParamSpec> all = WholeSpecs();
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i].name == name) return cuts_[i];
    }
    return Cut::kReplicated;
  }
  // A rank has only the parameters that it holds something of.
  const std::vector<ParamSpec>& specs(int rank) const { return specs_.at(rank); }

 private:
  int64_t Below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(engine_); }
  std::vector<int64_t> Cuts(int64_t n) {
    std::vector<int64_t> cuts = {0, n};
    for (int i = 1; i < ranks_; ++i) cuts.push_back(Below(n + 1));
    std::sort(cuts.begin(), cuts.end());
    return cuts;
  }

  void CutSpec(const ParamSpec& whole, Cut cut) {
    std::vector<std::vector<ParamSource>> held(static_cast<size_t>(ranks_));
    const std::vector<int64_t> columns = Cuts(whole.name == "embed" ? 5 : 3);
    for (size_t s = 0; s < whole.sources.size(); ++s) {
      const ParamSource& source = whole.sources[s];
      const int64_t elements = BlockElements(source);
      const bool plain = source.layout == Layout::kPlain;
      const int64_t wide = source.shape.rank() == 1 || whole.name == "gate_up_bias" ? 1
                           : plain ? source.shape[-1]
                                   : source.shape[-2];
      const std::vector<int64_t> rows = Cuts(elements / wide);
      const int64_t owner = Below(ranks_);
      for (int rank = 0; rank < ranks_; ++rank) {
        const auto r = static_cast<size_t>(rank);
        ParamSource mine = source;
        if (cut == Cut::kRows) mine.block = {.row_begin = rows[r], .rows = rows[r + 1] - rows[r]};
        if (cut == Cut::kColumns) {
          const int64_t last = r + 1 == static_cast<size_t>(ranks_) ? wide : columns[r + 1];
          mine.block = {.column_begin = columns[r], .columns = last - columns[r]};
        }
        if (cut == Cut::kSources && owner != rank) continue;
        if (BlockElements(mine) > 0) held[r].push_back(mine);
      }
    }
    for (int rank = 0; rank < ranks_; ++rank) {
      ParamSpec spec = whole;
      spec.sources = held[static_cast<size_t>(rank)];
      int64_t numel = 0;
      for (const ParamSource& source : spec.sources) numel += BlockElements(source);
      spec.shape = {numel};
      if (numel > 0) specs_[rank].push_back(spec);
      specs_.try_emplace(rank);
    }
  }

  int ranks_;
  std::mt19937_64 engine_;
  std::vector<Cut> cuts_;
  std::map<int, std::vector<ParamSpec>> specs_;
};

// What an element of the state is, by where it is stored.
double Expected(const std::string& slot, const std::string& tensor, int64_t stored) {
  return RandomKey(3, slot + tensor).Normal(static_cast<uint64_t>(stored));
}

class Rank {
 public:
  Rank(const Grid& grid, int rank, DType dtype) : grid_(grid), rank_(rank), dtype_(dtype) {
    for (const ParamSpec& spec : grid.specs(rank)) store_.Add(spec);
    if (grid.ranks() > 1) store_.set_part();
    store_.Allocate(allocator_, dtype, {.gradients = true});
    ctx_ = {.allocator = &allocator_, .parameters = &store_};
    optimizer_ = std::move(*MakeOptimizer(config_, store_, allocator_));
  }

  void Fill() {
    for (const ParamPiece& piece : WholeWeights(store_)) FillPiece("master", piece);
    const StatePart all = WholeState(store_, *optimizer_);
    for (const ParamPiece& piece : all.weights) FillPiece("master", piece);
    for (const StateSlot& slot : all.slots) {
      for (const ParamPiece& piece : slot.pieces) FillPiece(slot.name, piece);
    }
  }

  // Each element by one rank: replicas take turns or shares.
  StatePart ToSave() const {
    StatePart state = WholeState(store_, *optimizer_);
    state.weights = Owned(state.weights, /*state=*/false);
    for (StateSlot& slot : state.slots) slot.pieces = Owned(slot.pieces, true);
    return state;
  }
  // What a rank keeps: all of its slices, and of a sharded parameter its shard of the state.
  StatePart ToLoad() const {
    StatePart state = WholeState(store_, *optimizer_);
    for (StateSlot& slot : state.slots) slot.pieces = Kept(slot.pieces);
    if (dtype_ == DType::kBF16) state.weights = Kept(state.weights);
    return state;
  }

  CheckpointSaverOptions Options(const std::string& root, Communicator* group) const {
    return {.root = root,
            .keep_last = 0,
            .async = false,
            .max_shard_bytes = kShardBytes,
            .save_weights =
                [this](const std::string& folder, std::span<const ParamPiece> weights,
                       Communicator* all) {
                  StoredType type = ToStoredType(dtype_);
                  return SaveTensors(
                             store_, weights,
                             {.folder = folder,
                              .max_shard_bytes = kShardBytes,
                              .type =
                                  [type](const ParamSpec& spec, const ParamSource&, DType dtype) {
                                    return spec.fp32 ? ToStoredType(dtype) : type;
                                  }},
                             all)
                      .status();
                },
            .group = group};
  }

  absl::Status Save(const CheckpointSaverOptions& options, int64_t step) {
    CheckpointSaver saver(options, store_, ToSave(), allocator_);
    saver.Save(ctx_, {.step = step, .config = "a: 1\n", .model_config = kModelConfig});
    return saver.Wait();
  }

  absl::Status Load(const std::string& root) {
    CADRE_ASSIGN_OR_RETURN(auto found, FindGoodCheckpoint(root, [](const std::string&) {}));
    if (!found.has_value()) return NotFound("{}", root);
    auto weights = [this](const std::string& folder) {
      return LoadWeights(ctx_, folder, HfConfig()).status();
    };
    return LoadCheckpointState(*found, kModelConfig, weights, store_, ToLoad());
  }

  void ExpectFilled() const {
    for (const ParamPiece& piece : WholeWeights(store_)) ExpectPiece("master", piece);
    const StatePart loaded = ToLoad();
    for (const ParamPiece& piece : loaded.weights) ExpectPiece("master", piece);
    for (const StateSlot& slot : loaded.slots) {
      for (const ParamPiece& piece : slot.pieces) ExpectPiece(slot.name, piece);
    }
  }

  const ParameterStore& store() const { return store_; }
  Allocator& allocator() { return allocator_; }
  Context& ctx() { return ctx_; }

 private:
  Cut CutOf(const ParamPiece& piece) const { return grid_.cut(store_.spec(piece.param).name); }

  std::vector<ParamPiece> Owned(const std::vector<ParamPiece>& pieces, bool state) const {
    std::vector<ParamPiece> owned;
    for (const ParamPiece& piece : pieces) {
      const Cut cut = CutOf(piece);
      if (cut == Cut::kReplicated) {
        const auto turn = static_cast<int>(store_.spec(piece.param).name.size());
        if ((turn + (state ? 1 : 0)) % grid_.ranks() == rank_) owned.push_back(piece);
      } else if (cut == Cut::kSharded) {
        owned.push_back(ShareOf(piece, grid_.ranks(), rank_));
      } else {
        owned.push_back(piece);
      }
    }
    return owned;
  }

  std::vector<ParamPiece> Kept(std::vector<ParamPiece> pieces) const {
    for (ParamPiece& piece : pieces) {
      if (CutOf(piece) == Cut::kSharded) piece = ShareOf(piece, grid_.ranks(), rank_);
    }
    return pieces;
  }

  template <typename Fn>
  void ForEachElement(const ParamPiece& piece, const std::string& slot, Fn&& fn) const {
    VisitFloat(piece.values.dtype(), [&]<typename T>(T) {
      ForEachRun(store_.spec(piece.param), piece.begin, piece.begin + piece.values.numel(),
                 [&](const ParamRun& run) {
                   for (int64_t i = 0; i < run.count; ++i) {
                     // Every type holds what a narrower one would.
                     const auto value = static_cast<float>(
                         Expected(slot, run.source->tensor, run.stored + i * run.stored_stride));
                     fn(piece.values.data<T>()[run.local - piece.begin + i], T(value));
                   }
                 });
    });
  }
  void FillPiece(const std::string& slot, const ParamPiece& piece) const {
    ForEachElement(piece, slot, [](auto& element, auto value) { element = value; });
  }
  void ExpectPiece(const std::string& slot, const ParamPiece& piece) const {
    int wrong = 0;
    ForEachElement(piece, slot, [&](const auto& element, auto value) {
      wrong += std::memcmp(&element, &value, sizeof(value)) != 0;
    });
    EXPECT_EQ(wrong, 0) << slot << " of " << store_.spec(piece.param).name << " on rank " << rank_;
  }

  const Grid& grid_;
  const int rank_;
  const DType dtype_;
  HostAllocator allocator_;
  ParameterStore store_;
  config::OptimizerConfig config_;
  std::unique_ptr<Optimizer> optimizer_;
  Context ctx_;
};

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
