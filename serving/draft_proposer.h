// DraftProposer: guesses the next tokens of sequences, cheaper than the model would compute them.
//
// The engine runs the guesses behind the last known token in the same step and samples at each of
// them; a guess is kept where it is the token that is sampled there, and the first that is not ends
// the step's gain. Since a draw is keyed by (seed, choice, position) and a row's bits depend on the
// row alone, the tokens and logprobs are those without speculation, bit for bit, sampled or greedy.
// That is speculative sampling: a guess x is kept with probability p(x), and else the token has the
// distribution of p without x (Leviathan et al., "Fast Inference from Transformers via Speculative
// Decoding", 2023, for a proposal that is certain). Drafting models draw their guesses with the
// sequence's own numbers, so that a guess agrees more often (Daliri et al., "Coupling without
// Communication and Drafter-Invariant Speculative Decoding", 2025).
//
// Engine thread only.
#pragma once

#include <cstdint>
#include <span>

#include "serving/sequence.h"

namespace cadre {

struct DraftRequest {
  Sequence* sequence;  // all of its known tokens but the last are stored; its draft is empty
  int64_t most;        // guesses there is room for: at least 1
};

class DraftProposer {
 public:
  virtual ~DraftProposer() = default;

  // Appends up to `most` guesses to each sequence's draft; none is a good answer.
  virtual void Propose(std::span<const DraftRequest> requests) = 0;
  // Nothing more will be asked of this sequence.
  virtual void Forget(uint64_t id) {}
  // While the engine sleeps there are no sequences, and none of this memory is needed. Weights are
  // given up at level 2, and are there again before TakeMemory.
  virtual void GiveUpMemory(int level) {}
  virtual absl::Status TakeWeights() { return absl::OkStatus(); }
  virtual void TakeMemory() {}
};

}  // namespace cadre
