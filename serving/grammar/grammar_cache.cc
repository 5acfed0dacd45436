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
  CADRE_RETURN_IF_ERROR(CheckLive());
  CADRE_ASSIGN_OR_RETURN(Grammar grammar, build());
  CADRE_ASSIGN_OR_RETURN(auto compiled, CompiledGrammar::Create(std::move(grammar), trie_));
  Keep({key, compiled});
  return compiled;
}

absl::Status GrammarCache::CheckLive() {
  std::lock_guard lock(mutex_);
  size_t bytes = 0;
  std::erase_if(live_, [&](const auto& weak) {
    const auto grammar = weak.lock();
    if (grammar != nullptr) bytes += grammar->MemoryBytes();
    return grammar == nullptr;
  });
  if (bytes <= options_.max_live_bytes) return absl::OkStatus();
  return ResourceExhausted(
      "the grammars of requests at work take {} bytes, allowed are {}; new ones must wait", bytes,
      options_.max_live_bytes);
}

void GrammarCache::Keep(Entry entry) {
  std::lock_guard lock(mutex_);
  live_.push_back(entry.grammar);
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
