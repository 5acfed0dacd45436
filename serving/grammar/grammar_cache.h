// Grammars that were asked for lately, compiled for one vocabulary.
//
// Compiling is work of the front pool: it runs outside the lock, so two threads may compile the
// same grammar at once, and one of the results stays. What is kept is bounded in number and bytes;
// who holds a grammar keeps it alive, and all that are alive are bounded, too. Any thread.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "serving/grammar/compiled_grammar.h"

namespace cadre {

class GrammarCache {
 public:
  struct Options {
    size_t max_grammars = 64;
    // Of keys and automata. What a grammar keeps about tokens comes on top, bounded by
    // CompiledGrammar::kKeptBytes each.
    size_t max_bytes = size_t{64} << 20;
    // Of automata that the cache or others hold. Grammars that are compiled at one time all look at
    // it before they begin, so each thread may pass it by one.
    size_t max_live_bytes = size_t{256} << 20;
  };
  GrammarCache(std::shared_ptr<const TokenTrie> trie, Options options);

  // `key` says all that `build` depends on. Failures are not kept. kResourceExhausted: the
  // grammar is not there, and there is no room for it until others are let go.
  absl::StatusOr<std::shared_ptr<const CompiledGrammar>> Get(
      const std::string& key, const std::function<absl::StatusOr<Grammar>()>& build);

  size_t size() const;

 private:
  struct Entry {
    std::string key;
    std::shared_ptr<const CompiledGrammar> grammar;
    size_t bytes() const { return 2 * key.size() + grammar->MemoryBytes(); }
  };

  absl::Status CheckLive();
  void Keep(Entry entry);

  const std::shared_ptr<const TokenTrie> trie_;
  const Options options_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // the one used last in front
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
  size_t bytes_ = 0;
  std::vector<std::weak_ptr<const CompiledGrammar>> live_;  // some may be gone
};

}  // namespace cadre
