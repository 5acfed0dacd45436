#include <algorithm>
#include <vector>

#include "core/ops/attention_work.h"
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
        block.tile_end = (block.key_end + kAttentionKeyTile - 1) / kAttentionKeyTile;
        blocks.push_back(block);
      }
    }
  }
  return blocks;
}

template <typename F>
void RunWhole(Context& ctx, const F& forward, const AttentionBackend& backend,
              std::span<const AttentionBlock> blocks, std::span<const AttentionWork> work) {
  ParallelUnits(ctx, static_cast<int64_t>(blocks.size()), [&](int64_t u) {
    const AttentionBlock& block = blocks[u];
    const AttentionWork& w = work[omp_get_thread_num()];
    backend.begin();
    forward.Start(block, w);
    for (int64_t tile = block.tile_begin; tile < block.tile_end; ++tile) {
      forward.Tile(block, tile, w);
      forward.Fold(block.rows, forward.Current(w), w);
    }
    forward.Finish(block, w);
    backend.end();
  });
}

// Blocks whose partials are kept at once: `first` of each in tiles.
struct AttentionGroup {
  std::span<const AttentionBlock> blocks;
  std::vector<int64_t> first;
  int64_t tiles = 0;
};

inline AttentionGroup NextGroup(std::span<const AttentionBlock> blocks) {
  constexpr int64_t kTiles = 2048;
  AttentionGroup group;
  size_t n = 0;
  while (n < blocks.size()) {
    const int64_t tiles = blocks[n].tile_end - blocks[n].tile_begin;
    if (n > 0 && group.tiles + tiles > kTiles) break;
    group.first.push_back(group.tiles);
    group.tiles += tiles;
    ++n;
  }
  group.blocks = blocks.first(n);
  return group;
}

template <typename F>
void RunSplit(Context& ctx, const F& forward, const AttentionBackend& backend,
              std::span<const AttentionBlock> blocks, std::span<const AttentionWork> work,
              const KvLayout& layout, int64_t pieces) {
  size_t bytes = 0;
  AttentionPartial::At(nullptr, layout.value_pad(), &bytes);
  while (!blocks.empty()) {
    const AttentionGroup group = NextGroup(blocks);
    blocks = blocks.subspan(group.blocks.size());
    Tensor kept =
        ctx.Empty({static_cast<int64_t>(bytes) * std::max<int64_t>(group.tiles, 1)}, DType::kU8);
    auto partial = [&](size_t b, int64_t tile) {
      const int64_t at = group.first[b] + tile - group.blocks[b].tile_begin;
      return AttentionPartial::At(kept.raw() + bytes * at, layout.value_pad(), nullptr);
    };
    const int64_t count = static_cast<int64_t>(group.blocks.size());
    ParallelUnits(ctx, count * pieces, [&](int64_t u) {
      const AttentionBlock& block = group.blocks[u / pieces];
      const int64_t tiles = block.tile_end - block.tile_begin, piece = u % pieces;
      const int64_t begin = tiles * piece / pieces, end = tiles * (piece + 1) / pieces;
      if (begin == end) return;
      AttentionWork w = work[omp_get_thread_num()];
      backend.begin();
      forward.Start(block, w);
      for (int64_t tile = block.tile_begin + begin; tile < block.tile_begin + end; ++tile) {
        const AttentionPartial part = partial(u / pieces, tile);
        w.part_max = part.max;
        w.part_sum = part.sum;
        w.part = part.out;
        w.seen = part.seen;
        forward.Tile(block, tile, w);
      }
      backend.end();
    });
    ParallelUnits(ctx, count, [&](int64_t b) {
      const AttentionBlock& block = group.blocks[b];
      const AttentionWork& w = work[omp_get_thread_num()];
      forward.Start(block, w);
      for (int64_t tile = block.tile_begin; tile < block.tile_end; ++tile) {
        forward.Fold(block.rows, partial(b, tile), w);
      }
      forward.Finish(block, w);
    });
  }
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
  const int64_t count = static_cast<int64_t>(blocks.size());
  const int64_t pieces = args.workers > 0       ? args.workers
                         : count >= ctx.threads ? 1
                                                : (ctx.threads + count - 1) / count;
  Forward<T, A, Pool> forward(args, backend);
  if (pieces == 1) {
    RunWhole(ctx, forward, backend, blocks, work);
  } else {
    RunSplit(ctx, forward, backend, blocks, work, layout, pieces);
  }
}

void ForwardAny(Context& ctx, const AttentionForwardArgs& args) {
  const AttentionBackend backend = AttentionBackendFor(args.q.dtype(), args.kernel);
  switch (args.q.dtype()) {
    case DType::kF32:
      return Run<float, float, float>(ctx, args, backend);
    case DType::kF16:
      return Run<F16, float, float>(ctx, args, backend);
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
