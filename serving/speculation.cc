#include "serving/speculation.h"

#include <algorithm>

#include "serving/draft_model_proposer.h"
#include "serving/self_proposer.h"

namespace cadre {
namespace {

absl::StatusOr<std::unique_ptr<DraftProposer>> MakeProposer(const SpeculationOptions& options,
                                                            const SpeculationDeps& deps) {
  switch (options.method) {
    case SpeculationMethod::kNone:
      break;
    case SpeculationMethod::kNgram:
      if (options.ngram.shortest < 1 || options.ngram.longest < options.ngram.shortest) {
        return InvalidArgument(
            "speculative.prompt_lookup_min: {} (allowed: 1 to prompt_lookup_max = {})",
            options.ngram.shortest, options.ngram.longest);
      }
      return std::make_unique<NgramProposer>(options.ngram);
    case SpeculationMethod::kDraftModel:
      return DraftModelProposer::Create(
          *options.draft, deps.home.model()->spec().vocab,
          {.threads = deps.ctx.threads,
           .max_read_tokens = deps.max_num_batched_tokens,
           .kv = {.context = deps.max_context,
                  .max_num_seqs = std::min(deps.max_num_seqs, options.max_num_seqs),
                  .block_size = static_cast<int>(deps.cache.block_size())}});
    case SpeculationMethod::kSelf: {
      if (deps.ranks)
        return Unimplemented("speculative.method: self, not built over several ranks");
      const int all = static_cast<int>(deps.home.model()->spec().layers.size());
      if (options.layers < 1 || options.layers > all) {
        return InvalidArgument("speculative.num_layers: {} (allowed: 1 to {}, the model's layers)",
                               options.layers, all);
      }
      return std::make_unique<SelfProposer>(deps.ctx, deps.home, options.layers, deps.cache);
    }
  }
  CADRE_CHECK(false, "no proposer for method {}", static_cast<int>(options.method));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Speculation>> Speculation::Create(const SpeculationOptions& options,
                                                                 const SpeculationDeps& deps) {
  if (deps.lanes > 1) {
    return Unimplemented("speculative.method: not built over {} data-parallel ranks", deps.lanes);
  }
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<DraftProposer> proposer, MakeProposer(options, deps));
  return std::unique_ptr<Speculation>(new Speculation(options, deps, std::move(proposer)));
}

int64_t Speculation::Useful(const ScheduledChunk& chunk, int64_t budget) const {
  const Sequence& sequence = *chunk.sequence;
  const bool decodes = chunk.tokens == 1 && chunk.samples();
  if (!decodes) return 0;
  // The token that ends the sequence is sampled, never read.
  const int64_t left = sequence.request.sampling.max_tokens - sequence.generated() - 1;
  const int64_t room = deps_.max_context - sequence.known_tokens() - 1;
  return std::max<int64_t>(std::min({int64_t{options_.num_speculative_tokens}, left, room, budget}),
                           0);
}

void Speculation::Draft(std::vector<ScheduledChunk>& chunks) {
  if (chunks.size() > static_cast<size_t>(options_.max_num_seqs)) return;
  int64_t budget = deps_.max_num_batched_tokens;
  for (const ScheduledChunk& chunk : chunks) budget -= chunk.tokens;
  std::vector<DraftRequest> requests;
  std::vector<ScheduledChunk*> drafting;
  for (ScheduledChunk& chunk : chunks) {
    const int64_t most = Useful(chunk, budget);
    if (most < 1 || !deps_.cache.Extend(chunk.sequence->kv, chunk.end() + most)) continue;
    requests.push_back({chunk.sequence, most});
    drafting.push_back(&chunk);
    budget -= most;
  }
  if (requests.empty()) return;
  proposer_->Propose(requests);
  for (ScheduledChunk* chunk : drafting) {
    const auto guesses = static_cast<int64_t>(chunk->sequence->draft.size());
    chunk->tokens += guesses;
    stats_.draft_tokens += guesses;
    stats_.drafts += guesses > 0;
  }
}

void Speculation::Verified(Sequence& sequence, int64_t accepted) {
  stats_.accepted_tokens += accepted;
  sequence.draft.clear();
}

}  // namespace cadre
