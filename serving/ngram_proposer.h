// Prompt look-up: the last few tokens of a sequence, found earlier in it, are likely to go on as
// they did there (Saxena, "Prompt Lookup Decoding", 2023). Costs no forward.
#pragma once

#include "serving/draft_proposer.h"

namespace cadre {

struct NgramOptions {
  int longest = 4;   // tokens that are looked for, first
  int shortest = 2;  // and last
};

// The tokens, at most `most`, that followed the most recent earlier occurrence of the longest
// possible end of `tokens`; empty where none of the lengths occurs.
std::span<const int32_t> NgramGuess(std::span<const int32_t> tokens, const NgramOptions& options,
                                    int64_t most);

class NgramProposer : public DraftProposer {
 public:
  explicit NgramProposer(const NgramOptions& options) : options_(options) {}
  void Propose(std::span<const DraftRequest> requests) override;

 private:
  NgramOptions options_;
};

}  // namespace cadre
