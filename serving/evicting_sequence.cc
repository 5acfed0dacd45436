#include "serving/evicting_sequence.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "model/model.h"
#include "serving/expert_load.h"

namespace cadre {
namespace {

using Queries = KvEvictionPolicy::Queries;

// Of a prompt, at a time: enough for matrix products to run well, few enough that others' tokens
// wait for little more than their share.
constexpr int64_t kChunk = 256;

ops::KvView OneSequence(const ops::KvView& view, int64_t sequence) {
  ops::KvView one = view;
  one.block_tables = view.block_tables.subspan(static_cast<size_t>(sequence * view.table_stride),
                                               static_cast<size_t>(view.table_stride));
  one.context_lengths = view.context_lengths.subspan(static_cast<size_t>(sequence), 1);
  return one;
}

// The sum over calls of one layer, whose later ones see more keys.
void Add(KeyAttention* to, const KeyAttention& more, int64_t keys) {
  to->kv_heads = more.kv_heads;
  to->keys = keys;
  to->mean.resize(static_cast<size_t>(more.kv_heads * keys));
  for (int64_t h = 0; h < more.kv_heads; ++h) {
    for (int64_t j = 0; j < more.keys; ++j) {
      to->mean[static_cast<size_t>(h * keys + j)] +=
          more.mean[static_cast<size_t>(h * more.keys + j)];
    }
  }
}

}  // namespace

EvictingSequence::EvictingSequence(const KvBlockPool& pool,
                                   std::unique_ptr<const KvEvictionPolicy> policy,
                                   const EvictionShape& shape, int64_t answer_tokens)
    : pool_(pool), policy_(std::move(policy)), shape_(shape) {
  kept_.emplace(pool_, *policy_, shape_, answer_tokens);
}

int64_t EvictingSequence::AttachPrefix(KvCache& cache, const PrefixRoot& root,
                                       std::span<const int32_t> prompt) {
  const bool windowed =
      policy_->observed() == Queries::kWindow || policy_->observed() == Queries::kNewest;
  if (!windowed || !bounds_.empty()) return prefix_tokens_;
  cache.Free(prefix_);
  prefix_tokens_ = 0;
  const int64_t seen = std::max<int64_t>(policy_->window(), 1);
  const int64_t limit = (shape_.tokens - seen) / cache.block_size() * cache.block_size();
  if (limit <= 0) return 0;
  cache.Attach(prefix_, root, prompt, limit);
  // Its own blocks must fit beside them.
  if (blocks() + static_cast<int64_t>(prefix_.blocks().size()) > cache.blocks()) {
    cache.Free(prefix_);
  }
  return prefix_tokens_ = prefix_.stored();
}

void EvictingSequence::Hold(KvCache& cache, std::span<const int32_t> blocks) {
  if (kept_->holds()) return;
  // Copies that wait may read a block that is written now.
  for (const KvCopy& copy : cache.TakeCopies()) cache.Copy(copy);
  kept_->Hold(blocks);
}

void EvictingSequence::GiveWay(KvCache& cache) {
  if (bounds_.empty()) prefix_tokens_ = 0;
  if (!bounds_.empty() && !read() && prefix_.stored() > 0) SavePrefix();
  if (kept_->holds()) kept_->SwapOut();
  cache.Free(prefix_);
}

void EvictingSequence::SavePrefix() {
  // The layer in work has it among its own units, once it has begun.
  saved_from_ = layer_ + (chunk_ > 0 ? 1 : 0);
  const auto size = static_cast<size_t>(pool_.layout(0).block_bytes());
  saved_prefix_.reserve(static_cast<size_t>(shape_.layers - saved_from_) * prefix_.blocks().size() *
                        size);
  for (int64_t layer = saved_from_; layer < shape_.layers; ++layer) {
    for (const int32_t block : prefix_.blocks()) {
      const std::byte* unit = pool_.data(static_cast<int>(layer)) + block * size;
      saved_prefix_.insert(saved_prefix_.end(), unit, unit + size);
    }
  }
}

int64_t EvictingSequence::unread() const {
  if (read()) return 1;
  const int64_t begin = prefix_tokens_, layers = shape_.layers;
  const int64_t done = bounds_.empty() ? 0 : bounds_[chunk_] - begin;
  const int64_t left = (layers - layer_) * (shape_.tokens - begin) - done;
  return std::max<int64_t>((left + layers - 1) / layers, 1);
}

int32_t EvictingSequence::Position(int64_t index) const {
  return static_cast<int32_t>(policy_->positions_in_cache() ? kept_->count(0) - 1 : index);
}

void EvictingSequence::Read(const Reading& reading, int64_t tokens) {
  const int64_t begin = prefix_tokens_, all = shape_.tokens - begin;
  if (bounds_.empty()) {
    // The last chunk takes the rest, so that it has the whole window.
    for (int64_t i = 0; i < std::max<int64_t>(all / kChunk, 1); ++i) {
      bounds_.push_back(begin + i * kChunk);
    }
    hidden_.resize(bounds_.size());
    bounds_.push_back(shape_.tokens);
  }
  int64_t share = std::min(tokens, shape_.tokens) * shape_.layers;
  while (!read() && share > 0) {
    share -= bounds_[chunk_ + 1] - bounds_[chunk_];
    ReadChunk(reading);
  }
}

Batch EvictingSequence::ChunkOf(const Reading& reading, int64_t begin, int64_t end) const {
  Batch batch;
  const std::span<const int32_t> ids =
      reading.prompt.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  std::vector<int32_t> positions;
  for (int64_t i = begin; i < end; ++i) positions.push_back(static_cast<int32_t>(i));
  Allocator& allocator = *reading.ctx.allocator;
  batch.ids = Tensor::Of<int32_t>(allocator, {end - begin}, ids);
  batch.positions = Tensor::Of<int32_t>(allocator, {end - begin}, positions);
  batch.offsets = {0, static_cast<int32_t>(end - begin)};
  batch.attention_workers = reading.attention_workers;
  return batch;
}

void EvictingSequence::BeginLayer() {
  const auto layer = static_cast<int>(layer_);
  kept_->BeginLayer(layer, prefix_.blocks());
  if (saved_prefix_.empty()) return;
  const auto size = static_cast<size_t>(pool_.layout(0).block_bytes());
  const auto blocks = static_cast<size_t>(prefix_tokens_ / pool_.block_size());
  const std::byte* from =
      saved_prefix_.data() + static_cast<size_t>(layer_ - saved_from_) * blocks * size;
  for (const int32_t unit : kept_->table(layer).first(blocks)) {
    std::memcpy(pool_.data(0) + unit * size, from, size);
    from += size;
  }
}

void EvictingSequence::ReadChunk(const Reading& reading) {
  const int layer = static_cast<int>(layer_);
  const int64_t begin = bounds_[chunk_], end = bounds_[chunk_ + 1];
  if (chunk_ == 0) BeginLayer();
  Batch batch = ChunkOf(reading, begin, end);
  std::vector<int64_t> slots, unrotated;
  for (int64_t i = begin; i < end; ++i) {
    slots.push_back(kept_->Slot(layer, i));
    if (policy_->positions_in_cache()) unrotated.push_back(kept_->RawSlot(layer, i));
  }
  const auto length = static_cast<int32_t>(end);
  batch.kv.resize(static_cast<size_t>(shape_.layers));
  batch.kv[static_cast<size_t>(layer)] = {
      .view = {.data = pool_.data(0),
               .layout = pool_.layout(0),
               .block_tables = kept_->table(layer),
               .table_stride = static_cast<int64_t>(kept_->table(layer).size()),
               .context_lengths = std::span(&length, 1)},
      .slots = slots,
      .unrotated_slots = unrotated};
  batch.observer.call = [&](Context& ctx, const LayerQueries& queries) {
    Observe(ctx, queries, begin, end);
  };
  Var& hidden = hidden_[chunk_];
  DecoderOutput out =
      reading.model.decoder().ForwardLayers(reading.ctx, {layer, layer + 1}, hidden, batch);
  hidden = std::move(out.hidden);
  if (reading.load != nullptr) reading.load->Count(out.routing);
  if (++chunk_ < hidden_.size()) return;
  EndLayer(reading.cache);
}

void EvictingSequence::Observe(Context& ctx, const LayerQueries& queries, int64_t begin,
                               int64_t end) {
  const Queries observed = policy_->observed();
  const bool all = observed == Queries::kAll;
  attention_.kv_heads = pool_.layout(0).kv_heads;
  attention_.keys = shape_.tokens;
  if (observed == Queries::kNone) return;
  if (!all && (end < shape_.tokens || !kept_->evicts_prompt())) return;
  const int64_t rows = all ? end - begin : std::max<int64_t>(policy_->window(), 1);
  ops::AttentionStatisticsArgs args = queries.attention;
  args.q = args.q.Narrow(end - begin - rows, rows);
  args.lse = args.lse.Narrow(end - begin - rows, rows);
  args.keys = observed == Queries::kWindow ? end - rows : end;
  KeyAttention found{.kv_heads = attention_.kv_heads};
  WeighKeys(ops::ObserveAttention(ctx, args), rows, all, &found);
  if (all) {
    Add(&attention_, found, shape_.tokens);
  } else {
    attention_ = std::move(found);
  }
}

void EvictingSequence::EndLayer(KvCache& cache) {
  kept_->EndLayer(static_cast<int>(layer_), std::exchange(attention_, {}));
  chunk_ = 0;
  if (++layer_ < shape_.layers) return;
  const Tensor& last = hidden_.back().value;
  last_hidden_ = last.Narrow(last.dim(0) - 1, 1);
  hidden_.clear();
  cache.Free(prefix_);
  saved_prefix_ = {};
}

bool EvictingSequence::looks() const {
  return policy_->evicts_answers() && policy_->observed() != Queries::kNone;
}

void EvictingSequence::Settle(Context& ctx, const LayerQueries& queries, const Newest& newest) {
  if (!policy_->evicts_answers()) return;
  newest_.kv_heads = pool_.layout(0).kv_heads;
  newest_.mean.clear();
  if (looks()) {
    ops::AttentionStatisticsArgs args = queries.attention;
    args.q = args.q.Narrow(newest.row, 1);
    args.lse = args.lse.Narrow(newest.row, 1);
    args.kv = OneSequence(args.kv, newest.sequence);
    args.keys = kept_->count(queries.layer);
    if (queries.scores.defined()) {
      const Tensor& all = queries.scores;
      args.scores = all.Narrow(newest.observed, 1).Reshape({all.dim(1), all.dim(2)});
    }
    WeighKeys(ops::ObserveAttention(ctx, args), 1, policy_->observed() == Queries::kAll, &newest_);
  }
  kept_->Settle(ctx, queries.layer, newest_);
}

}  // namespace cadre
