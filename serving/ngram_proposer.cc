#include "serving/ngram_proposer.h"

#include <algorithm>

namespace cadre {

std::span<const int32_t> NgramGuess(std::span<const int32_t> tokens, const NgramOptions& options,
                                    int64_t most) {
  const auto size = static_cast<int64_t>(tokens.size());
  for (int64_t n = std::min<int64_t>(options.longest, size - 1); n >= options.shortest; --n) {
    const std::span<const int32_t> end = tokens.last(static_cast<size_t>(n));
    for (int64_t at = size - n - 1; at >= 0; --at) {
      if (tokens[at] != end[0] || !std::ranges::equal(tokens.subspan(at, n), end)) continue;
      return tokens.subspan(at + n, std::min(most, size - at - n));
    }
  }
  return {};
}

void NgramProposer::Propose(std::span<const DraftRequest> requests) {
  for (const DraftRequest& request : requests) {
    const auto guess = NgramGuess(request.sequence->tokens, options_, request.most);
    request.sequence->draft.assign(guess.begin(), guess.end());
  }
}

}  // namespace cadre
