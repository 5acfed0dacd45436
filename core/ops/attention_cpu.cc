#include <algorithm>
#include <atomic>
#include <vector>

#include "core/ops/attention_kept.h"
#include "core/ops/lean_plan.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/attention_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/attention_forward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

// How many of a sequence's keys are at most at `position`, where their positions ascend.
inline int64_t KeysUpTo(const AttentionForwardArgs& args, int64_t sequence, int64_t kv_head,
                        int64_t position) {
  const KvView& kv = args.kv;
  const int64_t size = kv.layout.block_size;
  int64_t begin = 0, end = kv.context_lengths[sequence];
  while (begin < end) {
    const int64_t slot = (begin + end) / 2;
    const int64_t id = kv.Block(sequence, slot / size) * kv.layout.kv_heads + kv_head;
    if (kv.positions[id * size + slot % size] <= position) {
      begin = slot + 1;
    } else {
      end = slot;
    }
  }
  return begin;
}

// Cuts the work into blocks of rows.
inline std::vector<AttentionBlock> Blocks(const AttentionForwardArgs& args) {
  std::vector<AttentionBlock> blocks;
  const int64_t kv_heads = args.kv.layout.kv_heads, group = args.q.dim(1) / kv_heads;
  const bool implied = args.kv.positions == nullptr;
  for (int64_t s = 0; s < args.kv.sequences(); ++s) {
    const int64_t queries = args.offsets[s + 1] - args.offsets[s];
    const int64_t length = args.kv.context_lengths[s], start = length - queries;
    auto position = [&](int64_t query) -> int64_t {
      return args.query_positions.empty() ? start + query
                                          : args.query_positions[args.offsets[s] + query];
    };
    for (int64_t g = 0; g < kv_heads; ++g) {
      for (int64_t row = 0; row < queries * group; row += kAttentionRows) {
        AttentionBlock block{s, g, row, std::min(kAttentionRows, queries * group - row)};
        block.key_end = length;
        const int64_t last = position((row + block.rows - 1) / group);
        const int64_t hidden = args.window == 0 ? -1 : position(row / group) - args.window;
        int64_t low = 0;
        if (implied) {
          block.key_end = std::min(length, last + 1);
          low = std::max<int64_t>(hidden + 1, 0);
        } else if (args.ascending_keys) {
          block.key_end = KeysUpTo(args, s, g, last);
          low = KeysUpTo(args, s, g, hidden);
        }
        block.tile_begin = low / kAttentionKeyTile;
        block.tile_end =
            std::max(block.tile_begin, (block.key_end + kAttentionKeyTile - 1) / kAttentionKeyTile);
        blocks.push_back(block);
      }
    }
  }
  return blocks;
}

// A window of the plan: workers fold what outputs begin with, keep the partials of what continues
// them, and who finishes an output's last piece folds those. Nobody waits.
template <typename F>
class LeanRun {
 public:
  LeanRun(const F& forward, const LeanPlan& plan, std::span<const AttentionBlock> blocks,
          const AttentionKept& kept)
      : forward_(forward), plan_(plan), blocks_(blocks), kept_(kept), left_(plan.shared.size()) {
    for (size_t i = 0; i < left_.size(); ++i) left_[i] = plan.shared[i].pieces;
  }

  void Work(int64_t worker, const AttentionWork& w) {
    for (const LeanPiece& piece : plan_.PiecesOf(worker)) {
      const AttentionBlock& block = blocks_[piece.output];
      forward_.Queries(block, w);
      if (piece.kept >= 0) {
        Keep(piece, block, w);
      } else {
        Fold(piece, block, w);
      }
      if (piece.shared < 0) {
        forward_.Finish(block, w);
      } else if (left_[piece.shared].fetch_sub(1, std::memory_order_acq_rel) == 1) {
        Complete(piece.shared, w);
      }
    }
  }

 private:
  void Keep(const LeanPiece& piece, const AttentionBlock& block, const AttentionWork& w) const {
    for (int64_t tile = piece.begin; tile < piece.end; ++tile) {
      forward_.Tile(block, block.tile_begin + tile, w);
      forward_.Current(w).CopyTo(kept_.Tile(piece.kept + tile - piece.begin), block.rows,
                                 kept_.values);
    }
  }

  void Fold(const LeanPiece& piece, const AttentionBlock& block, const AttentionWork& w) const {
    forward_.EmptySums(block, w);
    if (piece.begin > 0) kept_.Carried().CopyTo(forward_.Sums(w), block.rows, kept_.values);
    for (int64_t tile = piece.begin; tile < piece.end; ++tile) {
      forward_.Tile(block, block.tile_begin + tile, w);
      forward_.Fold(block.rows, forward_.Current(w), w);
    }
    if (piece.shared < 0) return;
    forward_.Sums(w).CopyTo(kept_.Sums(piece.shared), block.rows, kept_.values);
  }

  void Complete(int64_t index, const AttentionWork& w) const {
    const LeanShared& shared = plan_.shared[index];
    const AttentionBlock& block = blocks_[shared.output];
    kept_.Sums(index).CopyTo(forward_.Sums(w), block.rows, kept_.values);
    for (int64_t tile = shared.begin; tile < shared.end; ++tile) {
      forward_.Fold(block.rows, kept_.Tile(shared.kept + tile - shared.begin), w);
    }
    if (shared.complete) {
      forward_.Finish(block, w);
    } else {
      forward_.Sums(w).CopyTo(kept_.Carried(), block.rows, kept_.values);
    }
  }

  const F& forward_;
  const LeanPlan& plan_;
  const std::span<const AttentionBlock> blocks_;
  const AttentionKept& kept_;
  std::vector<std::atomic<int64_t>> left_;  // pieces of each shared output that are not finished
};

// On how many workers the line is laid where nobody says: some for each thread, as threads may be
// slow and tiles of few rows are cheap.
inline int64_t Workers(const Context& ctx, const AttentionForwardArgs& args, int64_t tiles) {
  if (args.workers > 0) return args.workers;
  if (ctx.threads <= 1) return 1;
  constexpr int64_t kTiles = 32, kMost = 8;
  return ctx.threads * std::clamp<int64_t>(tiles / (ctx.threads * kTiles), 1, kMost);
}

template <typename T, typename A, typename Pool>
void Run(Context& ctx, const AttentionForwardArgs& args, const AttentionBackend& backend) {
  const KvLayout& layout = args.kv.layout;
  const std::vector<AttentionBlock> blocks = Blocks(args);
  if (blocks.empty()) return;
  size_t bytes = 0;
  AttentionWork::At(nullptr, layout, &bytes);
  Tensor scratch = ctx.Empty({ctx.threads, static_cast<int64_t>(bytes)}, DType::kU8);
  std::vector<AttentionWork> work;
  for (int i = 0; i < ctx.threads; ++i) {
    work.push_back(AttentionWork::At(scratch.raw() + i * bytes, layout, nullptr));
  }
  std::vector<int64_t> tiles;
  int64_t total = 0;
  for (const AttentionBlock& block : blocks) {
    tiles.push_back(block.tile_end - block.tile_begin);
    total += tiles.back();
  }
  Forward<T, A, Pool> forward(args, backend);
  AttentionKept kept(blocks, layout.value_pad());
  const int64_t workers = Workers(ctx, args, total);
  const int64_t limit = std::max(args.kept_bytes / kept.bytes(), workers);
  for (const LeanPlan& plan : MakeLeanPlans(tiles, workers, limit)) {
    kept.Reserve(ctx, plan);
    LeanRun<Forward<T, A, Pool>> run(forward, plan, blocks, kept);
    ParallelUnits(ctx, workers, [&](int64_t worker) {
      backend.begin();
      run.Work(worker, work[omp_get_thread_num()]);
      backend.end();
    });
  }
}

void ForwardAny(Context& ctx, const AttentionForwardArgs& args) {
  const KvLayout& layout = args.kv.layout;
  const AttentionBackend backend = AttentionBackendFor(args.q.dtype(), layout.pairs(), args.kernel);
  switch (args.q.dtype()) {
    case DType::kF32:
      return layout.quantized() ? Run<float, float, BF16>(ctx, args, backend)
                                : Run<float, float, float>(ctx, args, backend);
    case DType::kF16:
      return layout.quantized() ? Run<F16, float, BF16>(ctx, args, backend)
                                : Run<F16, float, float>(ctx, args, backend);
    case DType::kBF16:
      return backend.bf16 ? Run<BF16, BF16, BF16>(ctx, args, backend)
                          : Run<BF16, float, BF16>(ctx, args, backend);
    default:
      CADRE_CHECK(false, "attention of dtype {}", static_cast<int>(args.q.dtype()));
  }
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(ForwardAny);

void AttentionForwardCpu(Context& ctx, const AttentionForwardArgs& args) {
  HWY_DYNAMIC_DISPATCH(ForwardAny)(ctx, args);
}

}  // namespace cadre::ops
#endif
