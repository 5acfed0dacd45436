#include "serving/grammar/grammar_cache.h"

namespace cadre {

GrammarCache::GrammarCache(std::shared_ptr<const TokenTrie> trie, Options options)
    : trie_(std::move(trie)), options_(options) {}

absl::StatusOr<std::shared_ptr<const CompiledGrammar>> GrammarCache::Get(
    const std::string& key, const std::function<absl::StatusOr<Grammar>()>& build) {
  {
    std::lock_guard lock(mutex_);
    if (auto it = by_key_.find(key); it != by_key_.end()) {
      entries_.splice(entries_.begin(), entries_, it->second);
      return it->second->grammar;
    }
  }
  CADRE_ASSIGN_OR_RETURN(const Grammar grammar, build());
  CADRE_ASSIGN_OR_RETURN(auto compiled, CompiledGrammar::Create(grammar, trie_));
  Keep({key, compiled});
  return compiled;
}

void GrammarCache::Keep(Entry entry) {
  std::lock_guard lock(mutex_);
  if (by_key_.contains(entry.key)) return;
  bytes_ += entry.bytes();
  entries_.push_front(std::move(entry));
  by_key_[entries_.front().key] = entries_.begin();
  while (entries_.size() > options_.max_grammars || bytes_ > options_.max_bytes) {
    bytes_ -= entries_.back().bytes();
    by_key_.erase(entries_.back().key);
    entries_.pop_back();
  }
}

size_t GrammarCache::size() const {
  std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace cadre
