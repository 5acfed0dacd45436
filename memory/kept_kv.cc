#include "memory/kept_kv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/ops/kv_copy.h"
#include "core/parallel_for.h"

namespace cadre {
namespace {

// Rows get `length` values, those at the end new and 0. spare: room to do it in.
void Lengthen(std::vector<float>& rows, int64_t count, int64_t length, std::vector<float>& spare) {
  const int64_t before = static_cast<int64_t>(rows.size()) / count;
  if (before == length) return;
  spare.assign(static_cast<size_t>(count * length), 0.0f);
  for (int64_t r = 0; r < count; ++r) {
    std::copy_n(rows.begin() + r * before, before, spare.begin() + r * length);
  }
  std::swap(rows, spare);
}

// T: the statistics' type.
template <typename T>
void Weigh(const ops::AttentionStatistics& statistics, int64_t queries, bool summed,
           KeyAttention* to) {
  KeyAttention& attention = *to;
  const int64_t kv_heads = attention.kv_heads;
  const int64_t heads = statistics.sum.dim(0), n = statistics.sum.dim(1), group = heads / kv_heads;
  const auto size = static_cast<size_t>(kv_heads * n);
  const bool varies = !summed && queries > 1;
  attention.keys = n;
  attention.mean.resize(size);
  attention.variance.assign(varies ? size : 0, 0.0f);
  attention.entropy = attention.total_variance = 0;
  const auto count = static_cast<double>(queries);
  const auto share = static_cast<float>(1 / ((summed ? 1.0 : count) * static_cast<double>(group)));
  for (int64_t h = 0; h < heads; ++h) {
    const T* sum = statistics.sum.data<T>() + h * n;
    float* mean = attention.mean.data() + h / group * n;
    if (h % group == 0) {
      for (int64_t j = 0; j < n; ++j) mean[j] = static_cast<float>(sum[j]) * share;
    } else {
      for (int64_t j = 0; j < n; ++j) mean[j] += static_cast<float>(sum[j]) * share;
    }
    attention.entropy += statistics.entropy.data<T>()[h];
    if (!varies) continue;
    const T* square = statistics.square.data<T>() + h * n;
    float* variance = attention.variance.data() + h / group * n;
    for (int64_t j = 0; j < n; ++j) {
      const double apart = square[j] - static_cast<double>(sum[j]) * sum[j] / count;
      const double one = std::max(apart, 0.0) / (count - 1);
      attention.total_variance += one;
      variance[j] += static_cast<float>(one / static_cast<double>(group));
    }
  }
}

}  // namespace

void WeighKeys(const ops::AttentionStatistics& statistics, int64_t queries, bool summed,
               KeyAttention* to) {
  if (statistics.sum.dtype() == DType::kF64) return Weigh<double>(statistics, queries, summed, to);
  Weigh<float>(statistics, queries, summed, to);
}

KeptKv::KeptKv(const KvBlockPool& pool, const KvEvictionPolicy& policy, const EvictionShape& shape,
               int64_t answer_tokens)
    : pool_(pool),
      policy_(policy),
      shape_(shape),
      answer_tokens_(answer_tokens),
      block_size_(pool.block_size()),
      heads_(pool.layout(0).kv_heads),
      layers_(static_cast<size_t>(shape.layers)) {
  CADRE_CHECK(pool.uniform() && pool.layers() == shape.layers, "{} layers, the pool has {}",
              shape.layers, pool.layers());
  CADRE_CHECK(shape.tokens > 0 && shape.budget >= policy.least_budget() && answer_tokens >= 0,
              "{} tokens, budget {}", shape.tokens, shape.budget);
}

int64_t KeptKv::UnitsNeeded() const {
  const int64_t layers = shape_.layers, tokens = shape_.tokens, budget = shape_.budget;
  const int64_t all = tokens + answer_tokens_;
  // Each layer's share of a budget is rounded up to units, hence a unit more for each.
  const auto together = [&](int64_t mean) { return UnitsFor(mean * layers) + layers; };
  const bool evicts = evicts_prompt(), answers = policy_.evicts_answers();
  const int64_t prompt = (evicts ? together(budget) : layers * UnitsFor(tokens)) + UnitsFor(tokens);
  int64_t answer = layers * UnitsFor(all);
  if (answers && evicts) answer = std::min(answer, together(budget + 1));
  if (answers && !evicts) {
    answer = std::min(answer, layers * UnitsFor(std::max(tokens, budget) + 1));
  }
  if (!answers && evicts) answer = std::min(answer, together(budget + answer_tokens_));
  if (policy_.positions_in_cache()) answer += UnitsFor(std::min(all, budget + 1));
  return std::max(prompt, answer);
}

int64_t KeptKv::blocks_needed() const {
  return (UnitsNeeded() + shape_.layers - 1) / shape_.layers;
}

std::byte* KeptKv::Head(int32_t unit, int64_t head) const {
  const ops::KvLayout& layout = pool_.layout(0);
  return pool_.data(0) + unit * layout.block_bytes() + head * layout.head_bytes();
}

int64_t KeptKv::Slot(int layer, int64_t index) const {
  return layers_[layer].units[index / block_size_] * block_size_ + index % block_size_;
}

std::vector<int32_t> KeptKv::TakeUnits(int64_t count) {
  CADRE_CHECK(count <= static_cast<int64_t>(free_.size()), "{} units of {} free ones", count,
              free_.size());
  std::vector<int32_t> units(free_.end() - count, free_.end());
  free_.resize(free_.size() - static_cast<size_t>(count));
  peak_ = std::max(peak_, units_in_use());
  return units;
}

// `layer` has `shared` units in front where `units` are its own.
void KeptKv::GiveUnits(Layer& layer, std::vector<int32_t>& units, int64_t keep) {
  const int64_t others = &units == &layer.units ? layer.shared : 0;
  while (static_cast<int64_t>(units.size()) > keep) {
    if (static_cast<int64_t>(units.size()) > others) free_.push_back(units.back());
    units.pop_back();
  }
  if (&units == &layer.units) layer.shared = std::min(layer.shared, keep);
}

void KeptKv::BeginLayer(int index, std::span<const int32_t> shared) {
  Layer& layer = layers_[index];
  CADRE_CHECK(layer.units.empty(), "layer {} holds {} units", index, layer.units.size());
  layer.shared = static_cast<int64_t>(shared.size());
  for (const int32_t block : shared) layer.units.push_back(pool_.Unit(index, block));
  for (const int32_t unit : TakeUnits(UnitsFor(shape_.tokens) - layer.shared)) {
    layer.units.push_back(unit);
  }
  layer.count = shape_.tokens;
  if (!policy_.positions_in_cache()) return;
  CADRE_CHECK(layer.shared == 0, "unrotated keys are not shared");
  layer.raw = TakeUnits(UnitsFor(std::min(shape_.tokens, shape_.budget)));
}

int64_t KeptKv::RawSlot(int index, int64_t token) const {
  const int64_t recent = policy_.Recent(shape_.budget), first = shape_.budget - recent;
  int64_t place = token;
  if (evicts_prompt() && token >= first) {
    place = token - (shape_.tokens - recent) + first;
    if (place < first) return -1;
  }
  return layers_[index].raw[place / block_size_] * block_size_ + place % block_size_;
}

void KeptKv::EndLayer(int index, const KeyAttention& attention) {
  Layer& layer = layers_[index];
  layer.keys.assign(static_cast<size_t>(heads_), {});
  for (std::vector<Key>& keys : layer.keys) {
    for (int32_t i = 0; i < layer.count; ++i) keys.push_back({i, i});
  }
  const bool observed = evicts_prompt() || policy_.observed() == KvEvictionPolicy::Queries::kAll;
  if (observed) layer.scores = policy_.Scores(attention);
  if (evicts_prompt()) {
    preferences_.push_back(policy_.Preference(attention));
    const std::vector<int64_t> budgets = policy_.Budgets(shape_, preferences_);
    // The newest layer last: it needs room where its prefix is shared.
    for (int l = 0; l <= index; ++l) Shrink(layers_[l], budgets[static_cast<size_t>(l)]);
  } else if (layer.shared > 0) {
    Shrink(layer, layer.count);
  }
  if (policy_.positions_in_cache()) {
    GiveUnits(layer, layer.units, 0);
    layer.units = std::exchange(layer.raw, {});
  }
  if (index + 1 < shape_.layers) return;
  for (Layer& l : layers_) l.most = evicts_prompt() ? l.count : std::max(l.count, shape_.budget);
}

void KeptKv::CopySlot(const Layer& layer, int64_t head, int64_t from,
                      std::span<const int32_t> to_units, int64_t to) const {
  ops::CopyKvSlot(pool_.layout(0), Head(layer.units[from / block_size_], head), from % block_size_,
                  Head(to_units[to / block_size_], head), to % block_size_);
}

void KeptKv::Shrink(Layer& layer, int64_t keep) {
  const int64_t recent = std::min(policy_.Recent(shape_.budget), layer.count);
  const int64_t candidates = layer.count - recent, kept = std::min(keep, candidates) + recent;
  if (kept == layer.count && layer.shared == 0) return;
  // Where some of the prompt lies in others' blocks, what is kept is copied out of them.
  std::vector<int32_t> own;
  if (layer.shared > 0) own = TakeUnits(UnitsFor(kept));
  const std::span<const int32_t> to = layer.shared > 0 ? own : std::span(layer.units);
  const int64_t scored = static_cast<int64_t>(layer.scores.size()) / heads_;
  std::vector<float> scores;
  for (int64_t h = 0; h < heads_; ++h) {
    std::vector<Key>& keys = layer.keys[static_cast<size_t>(h)];
    const float* row = layer.scores.data() + h * scored;
    const std::vector<float> none(static_cast<size_t>(kept == layer.count ? candidates : 0));
    const std::span<const float> ranked =
        none.empty() ? std::span(row, static_cast<size_t>(candidates)) : std::span(none);
    const std::vector<int32_t> chosen = SelectKept(ranked, kept - recent, layer.count);
    std::vector<Key> left;
    // Ascending slots, so that nothing is overwritten before it has moved.
    for (const int32_t i : chosen) {
      const auto place = static_cast<int32_t>(left.size());
      if (layer.raw.empty()) CopySlot(layer, h, keys[static_cast<size_t>(i)].slot, to, place);
      left.push_back({place, keys[static_cast<size_t>(i)].position});
      if (i < scored) scores.push_back(row[i]);
    }
    keys = std::move(left);
  }
  layer.scores = std::move(scores);
  layer.count = kept;
  if (layer.shared > 0) {
    GiveUnits(layer, layer.units, 0);
    layer.units = std::move(own);
  } else if (layer.raw.empty()) {
    GiveUnits(layer, layer.units, UnitsFor(kept));
  }
}

template <typename Body>
void KeptKv::ForHeads(const Context& ctx, const Layer& layer, Body&& body) const {
  // Fewer keys are not worth waking a thread: that takes as long as tens of thousands.
  constexpr int64_t kKeys = 65536;
  ParallelFor(ctx, heads_, std::max<int64_t>(kKeys / std::max<int64_t>(layer.count, 1), 1),
              [&](int64_t begin, int64_t end) {
                for (int64_t h = begin; h < end; ++h) body(h);
              });
}

void KeptKv::Append(int32_t position) {
  for (Layer& layer : layers_) {
    const auto slot = static_cast<int32_t>(layer.count++);
    if (UnitsFor(layer.count) > static_cast<int64_t>(layer.units.size())) {
      layer.units.push_back(TakeUnits(1).front());
    }
    for (std::vector<Key>& keys : layer.keys) keys.push_back({slot, position});
  }
  if (!policy_.positions_in_cache()) return;
  while (static_cast<int64_t>(scratch_.size()) < UnitsFor(layers_.front().count)) {
    scratch_.push_back(TakeUnits(1).front());
  }
}

void KeptKv::OrderNewest(const Context& ctx, const Layer& layer, const KeyAttention& by_slot) {
  KeyAttention& attention = newest_;
  attention.kv_heads = heads_;
  attention.keys = layer.count;
  attention.mean.clear();
  if (by_slot.mean.empty()) return;
  CADRE_CHECK(by_slot.keys == layer.count, "{} keys of {}", by_slot.keys, layer.count);
  attention.mean.resize(by_slot.mean.size());
  ForHeads(ctx, layer, [&](int64_t h) {
    const float* from = by_slot.mean.data() + h * layer.count;
    float* to = attention.mean.data() + h * layer.count;
    for (const Key& key : layer.keys[static_cast<size_t>(h)]) *to++ = from[key.slot];
  });
}

void KeptKv::Settle(const Context& ctx, int index, const KeyAttention& by_slot) {
  if (!policy_.evicts_answers()) return;
  Layer& layer = layers_[index];
  Lengthen(layer.scores, heads_, layer.count, spare_);
  OrderNewest(ctx, layer, by_slot);
  policy_.Update(newest_, layer.scores);
  if (layer.count <= layer.most) return;
  spare_.resize(static_cast<size_t>(heads_ * (layer.count - 1)));
  ForHeads(ctx, layer,
           [&](int64_t h) { DropWorst(layer, h, spare_.data() + h * (layer.count - 1)); });
  std::swap(layer.scores, spare_);
  --layer.count;
  GiveUnits(layer, layer.units, UnitsFor(layer.count));
}

// left: the scores of the others. Ties: the newest goes.
void KeptKv::DropWorst(Layer& layer, int64_t head, float* left) {
  std::vector<Key>& keys = layer.keys[static_cast<size_t>(head)];
  const float* scores = layer.scores.data() + head * layer.count;
  const int64_t candidates = std::max<int64_t>(layer.count - policy_.Recent(shape_.budget), 1);
  int64_t worst = 0;
  float least = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < candidates; ++i) {
    // What is no number is worth nothing.
    const float score = std::isnan(scores[i]) ? -std::numeric_limits<float>::infinity() : scores[i];
    if (score <= least) {
      least = score;
      worst = i;
    }
  }
  left = std::copy_n(scores, worst, left);
  std::copy_n(scores + worst + 1, layer.count - worst - 1, left);
  const auto last = static_cast<int32_t>(layer.count - 1);
  const int32_t hole = keys[static_cast<size_t>(worst)].slot;
  keys.erase(keys.begin() + worst);
  if (hole == last) return;
  CopySlot(layer, head, last, layer.units, hole);
  std::ranges::find(keys, last, &Key::slot)->slot = hole;
}

std::vector<int32_t> KeptKv::Positions(int layer, int64_t head) const {
  std::vector<int32_t> positions;
  for (const Key& key : layers_[layer].keys[static_cast<size_t>(head)]) {
    positions.push_back(key.position);
  }
  return positions;
}

std::vector<int64_t> KeptKv::Ordered(int layer) const {
  std::vector<int64_t> slots;
  for (const Key& key : layers_[layer].keys.front()) slots.push_back(Slot(layer, key.slot));
  return slots;
}

int64_t KeptKv::ScratchSlot(int64_t index) const {
  return scratch_[index / block_size_] * block_size_ + index % block_size_;
}

void KeptKv::SwapOut() {
  const auto size = static_cast<size_t>(pool_.layout(0).block_bytes());
  for (Layer& layer : layers_) {
    for (const std::vector<int32_t>* units : {&layer.units, &layer.raw}) {
      for (const int32_t unit : *units) {
        swapped_.insert(swapped_.end(), Head(unit, 0), Head(unit, 0) + size);
      }
    }
    layer.shared = 0;
  }
  free_.clear();
  scratch_.clear();
  held_ = 0;
}

void KeptKv::Hold(std::span<const int32_t> blocks) {
  CADRE_CHECK(held_ == 0 && static_cast<int64_t>(blocks.size()) >= blocks_needed(),
              "{} blocks, {} are needed", blocks.size(), blocks_needed());
  // The last are taken first; low blocks are, so that those behind stay whole.
  for (size_t b = blocks.size(); b-- > 0;) {
    for (int layer = pool_.layers(); layer-- > 0;) free_.push_back(pool_.Unit(layer, blocks[b]));
  }
  held_ = static_cast<int64_t>(free_.size());
  const auto size = static_cast<size_t>(pool_.layout(0).block_bytes());
  const std::byte* from = swapped_.data();
  for (Layer& layer : layers_) {
    for (std::vector<int32_t>* units : {&layer.units, &layer.raw}) {
      *units = TakeUnits(static_cast<int64_t>(units->size()));
      for (const int32_t unit : *units) {
        std::memcpy(Head(unit, 0), from, size);
        from += size;
      }
    }
  }
  swapped_ = {};
}

}  // namespace cadre
