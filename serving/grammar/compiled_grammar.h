// CompiledGrammar: a grammar bound to a vocabulary; TokenMatcher: one generated text on its way
// through it, which says at each place which tokens may come next.
//
// A state's byte edges alone decide most tokens, whatever calls are open above it; these are found
// once per state and kept, as in XGrammar (Dong et al., 2024). What remains are tokens that run
// past the end of the rule: they are walked behind that end for each mask. Text as a walk over
// token masks is after Willard and Louf (2023).
//
//   CADRE_ASSIGN_OR_RETURN(auto grammar, CompiledGrammar::Create(rules, trie, limits));
//   TokenMatcher matcher(grammar);
//   CADRE_RETURN_IF_ERROR(matcher.FillMask(mask));   // bit i: token i may follow
//   matcher.Accept(token);
#pragma once

#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "serving/grammar/automaton.h"
#include "serving/grammar/matcher.h"
#include "serving/grammar/token_trie.h"

namespace cadre {

// Any thread; what it keeps of states is bounded and guarded inside.
class CompiledGrammar {
 public:
  // What a state says about tokens.
  struct StateTokens {
    std::vector<uint64_t> words;   // a mask, or empty:
    std::vector<int32_t> ids;      // few tokens, one by one
    std::vector<int32_t> escapes;  // nodes of the trie where the rule may end amid a token
  };

  // kInvalidArgument: see CompileAutomaton; also where a first mask passes MatcherLimits.
  static absl::StatusOr<std::shared_ptr<const CompiledGrammar>> Create(
      Grammar grammar, std::shared_ptr<const TokenTrie> trie, const GrammarLimits& limits = {});
  CompiledGrammar(Automaton automaton, std::shared_ptr<const TokenTrie> trie);

  const Automaton& automaton() const { return automaton_; }
  const TokenTrie& trie() const { return *trie_; }
  // Adds to `work` the steps that it took. kResourceExhausted where MatcherLimits are passed.
  absl::StatusOr<std::shared_ptr<const StateTokens>> TokensOf(int32_t state, int64_t* work) const;
  // Of the automaton; what is kept of states is at most kKeptBytes more.
  size_t MemoryBytes() const { return automaton_.MemoryBytes(); }

  static constexpr size_t kKeptBytes = size_t{8} << 20;

 private:
  // Null where a bound was passed.
  std::shared_ptr<const StateTokens> Compute(int32_t state, int64_t* work) const;

  const Automaton automaton_;
  const std::shared_ptr<const TokenTrie> trie_;
  mutable std::mutex mutex_;
  mutable absl::flat_hash_map<int32_t, std::shared_ptr<const StateTokens>> kept_;
  mutable size_t kept_bytes_ = 0;
};

// One thread at a time; copies are independent.
class TokenMatcher {
 public:
  explicit TokenMatcher(std::shared_ptr<const CompiledGrammar> grammar);

  // Sets bit i of `mask` (mask_words of the trie, bit 0 lowest) where the text may go on with token
  // i. kResourceExhausted: too many parses; the mask means nothing.
  absl::Status FillMask(std::span<uint64_t> mask) const;
  // The text so far is whole.
  bool may_end() const { return walk_.at_end(); }
  // kInvalidArgument: the token may not come here; the matcher is where it was.
  absl::Status Accept(int32_t token);
  absl::Status AcceptBytes(std::string_view bytes);

  const CompiledGrammar& grammar() const { return *grammar_; }

 private:
  absl::Status FillBehind(int32_t frame, std::span<const int32_t> escapes, std::span<uint64_t> mask,
                          int64_t* work) const;

  std::shared_ptr<const CompiledGrammar> grammar_;
  GrammarWalk walk_;
};

}  // namespace cadre
