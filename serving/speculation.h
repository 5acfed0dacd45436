// Speculation: which sequences of a step get guesses, how many, and what became of them.
//
// Engine thread only. See draft_proposer.h for what is promised.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "memory/kv_cache.h"
#include "serving/draft_proposer.h"
#include "serving/model_home.h"
#include "serving/ngram_proposer.h"

namespace cadre {

enum class SpeculationMethod { kNone, kNgram, kDraftModel, kSelf };

struct SpeculationOptions {
  SpeculationMethod method = SpeculationMethod::kNone;
  int num_speculative_tokens = 4;  // guesses of a sequence in one step, at least 1
  // No guesses in steps of more sequences than that: a step that is bound by arithmetic gains
  // nothing from rows that may be thrown away.
  int max_num_seqs = 8;
  NgramOptions ngram;
  // Of kDraftModel; outlives the engine, which alone runs it.
  ModelHome* draft = nullptr;
  int layers = 0;  // of kSelf: the first ones, 1 to all
};

// What the model's side lends to its drafting.
struct SpeculationDeps {
  Context& ctx;
  const ModelHome& home;
  KvCache& cache;
  int64_t max_context = 0;
  int64_t max_num_batched_tokens = 0;
  int max_num_seqs = 0;
  bool ranks = false;  // other ranks hold parts of the model
  int lanes = 1;       // see serving/lanes.h
};

struct SpeculationStats {
  int64_t drafts = 0;  // sequences times steps that had guesses
  int64_t draft_tokens = 0;
  int64_t accepted_tokens = 0;
};

class Speculation {
 public:
  // kInvalidArgument: options that do not fit the model. kUnimplemented: kSelf over ranks, which
  // follow whole steps only; several lanes.
  static absl::StatusOr<std::unique_ptr<Speculation>> Create(const SpeculationOptions& options,
                                                             const SpeculationDeps& deps);

  // Lengthens the chunks of sequences that decode by guesses, whose room in the cache it takes
  // without pushing anything out, within what the step's budget leaves.
  void Draft(std::vector<ScheduledChunk>& chunks);
  // The guesses of a sequence were looked at; forgets them.
  void Verified(Sequence& sequence, int64_t accepted);
  // A sequence ended.
  void Forget(uint64_t id) { proposer_->Forget(id); }
  // Around the engine's sleep; see DraftProposer.
  void GiveUpMemory(int level) { proposer_->GiveUpMemory(level); }
  absl::Status TakeWeights() { return proposer_->TakeWeights(); }
  void TakeMemory() { proposer_->TakeMemory(); }

  const SpeculationStats& stats() const { return stats_; }

 private:
  Speculation(const SpeculationOptions& options, const SpeculationDeps& deps,
              std::unique_ptr<DraftProposer> proposer)
      : options_(options), deps_(deps), proposer_(std::move(proposer)) {}
  // Guesses that the sequence could use, at most `budget`.
  int64_t Useful(const ScheduledChunk& chunk, int64_t budget) const;

  SpeculationOptions options_;
  SpeculationDeps deps_;
  std::unique_ptr<DraftProposer> proposer_;
  SpeculationStats stats_;
};

}  // namespace cadre
