// Parameters of every kind cut over ranks in random ways, for tests of checkpoints by several
// ranks.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "model/hf_config.h"
#include "model/hf_folder.h"
#include "parallel/shard.h"
#include "training/checkpoint.h"
#include "training/checkpoint_test_util.h"

namespace cadre {

inline constexpr char kModelConfig[] = "model_type: test\n";
inline constexpr int64_t kShardBytes = 700;

// One of every kind of source.
inline std::vector<ParamSpec> WholeSpecs() {
  auto experts = [](const std::string& name, const Shape& stored, const Shape& used,
                    ParamSource::Layout layout) {
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
          experts("gate_up", {4, 10, 6}, {4, 6, 10}, ParamSource::Layout::kTransposedInterleaved),
          experts("gate_up_bias", {4, 6}, {4, 6}, ParamSource::Layout::kInterleavedVector),
          experts("down", {4, 3, 10}, {4, 10, 3}, ParamSource::Layout::kTransposed)};
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
      const bool plain = source.layout == ParamSource::Layout::kPlain;
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

inline ParamPiece ShareOf(const ParamPiece& piece, int replicas, int replica) {
  const Shard shard = ShardOf(piece.values.numel(), replicas, replica);
  return {.param = piece.param,
          .begin = piece.begin + shard.begin,
          .values = piece.values.Narrow(shard.begin, shard.numel)};
}

// What an element of the state is, by where it is stored.
inline double Expected(const std::string& slot, const std::string& tensor, int64_t stored) {
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
    const StatePart all = StateOf(store_, *optimizer_);
    for (const ParamPiece& piece : all.weights) FillPiece("master", piece);
    for (const StateSlot& slot : all.slots) {
      for (const ParamPiece& piece : slot.pieces) FillPiece(slot.name, piece);
    }
  }

  // Each element by one rank: replicas take turns or shares.
  StatePart ToSave() const {
    StatePart state = StateOf(store_, *optimizer_);
    state.weights = Owned(state.weights, /*state=*/false);
    for (StateSlot& slot : state.slots) slot.pieces = Owned(slot.pieces, true);
    return state;
  }
  // What a rank keeps: all of its slices, and of a sharded parameter its shard of the state.
  StatePart ToLoad() const {
    StatePart state = StateOf(store_, *optimizer_);
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

}  // namespace cadre
