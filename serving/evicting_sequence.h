// EvictingSequence: a request whose KV cache is kept within a budget (memory/kept_kv.h). Its prompt
// is read layer by layer, a share of it in each step; its answer is decoded with all the others'.
//
//   scheduler: blocks() at once, then Hold; GiveWay when another needs them (what was read is kept
//              in memory, not computed again)
//   engine:    Read(...) until read(); then, for every token, Append and, from the forward, Settle
//
// Engine thread only, but for Create and blocks().
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/context.h"
#include "memory/kept_kv.h"
#include "memory/kv_cache.h"
#include "model/batch.h"

namespace cadre {

class ExpertLoad;
class Model;

class EvictingSequence {
 public:
  // The pool outlives this.
  EvictingSequence(const KvBlockPool& pool, std::unique_ptr<const KvEvictionPolicy> policy,
                   const EvictionShape& shape, int64_t answer_tokens);

  int64_t blocks() const { return kept_->blocks_needed(); }
  // Takes what is cached of the prompt, up to the window of queries that the policy looks at;
  // returns its tokens. Before the first Hold.
  int64_t AttachPrefix(KvCache& cache, const PrefixRoot& root, std::span<const int32_t> prompt);
  int64_t prefix_tokens() const { return prefix_tokens_; }
  // Its blocks, where it has none.
  void Hold(KvCache& cache, std::span<const int32_t> blocks);
  // Its blocks are another's from now on; what they have, and what layers to come need of a shared
  // prefix, goes to memory of its own.
  void GiveWay(KvCache& cache);
  // Lets go of what it shares; its own blocks are the scheduler's to free.
  void Release(KvCache& cache) { cache.Free(prefix_); }

  // Whether the prompt is read. Tokens' worth of work that is left of it, 1 where none is: the next
  // token.
  bool read() const { return layer_ == kept_->shape().layers; }
  int64_t unread() const;

  // Reads about `tokens` tokens' worth of the prompt, in whole chunks.
  struct Reading {
    Context& ctx;
    const Model& model;
    KvCache& cache;
    std::span<const int32_t> prompt;
    int attention_workers = 0;
    ExpertLoad* load = nullptr;  // counts what is routed
  };
  void Read(const Reading& reading, int64_t tokens);
  // [1, D] of the prompt's last token, once it is read.
  const Tensor& last_hidden() const { return last_hidden_; }

  // Room for the next token, which is token `index` of the sequence.
  void Append(int64_t index) { kept_->Append(static_cast<int32_t>(index)); }
  // What the rotary position of the appended token is.
  int32_t Position(int64_t index) const;
  // Whether Settle looks at attention.
  bool looks() const;
  // Where a step has the newest query: row `row` of its tokens, in its sequence `sequence`, the
  // `observed`-th of its observer's.
  struct Newest {
    int64_t row = 0, sequence = 0, observed = 0;
  };
  // A layer has attended for the newest query.
  void Settle(Context& ctx, const LayerQueries& queries, const Newest& newest);

  KeptKv& kept() { return *kept_; }
  const KeptKv& kept() const { return *kept_; }

 private:
  void SavePrefix();
  // Room for the prompt in the layer that is to be read.
  void BeginLayer();
  void ReadChunk(const Reading& reading);
  Batch ChunkOf(const Reading& reading, int64_t begin, int64_t end) const;
  // Of queries in the chunk's attention; all but the last layer's chunk look at none.
  void Observe(Context& ctx, const LayerQueries& queries, int64_t begin, int64_t end);
  void EndLayer(KvCache& cache);

  const KvBlockPool& pool_;
  const std::unique_ptr<const KvEvictionPolicy> policy_;
  const EvictionShape shape_;
  std::optional<KeptKv> kept_;
  KvSequence prefix_;  // shared with others while the prompt is read
  int64_t prefix_tokens_ = 0;
  std::vector<std::byte> saved_prefix_;  // in its stead once the sequence gave way: whole layers,
  int64_t saved_from_ = 0;               // this one and those behind it
  std::vector<int64_t> bounds_;          // of the chunks
  std::vector<Var> hidden_;              // of each chunk, what the next layer takes
  KeyAttention attention_;               // to the layer in work
  KeyAttention newest_;                  // of the newest token, in one layer
  size_t chunk_ = 0;
  int64_t layer_ = 0;
  Tensor last_hidden_;
};

}  // namespace cadre
