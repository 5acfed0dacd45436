#include "serving/grammar/compiled_grammar.h"

#include <algorithm>

namespace cadre {
namespace {

absl::Status TooManyParses() {
  const MatcherLimits limits;
  return ResourceExhausted(
      "the grammar is too ambiguous: more than {} parses at once, {} open rules or {} steps for "
      "one token",
      limits.max_parses, limits.max_frames, limits.max_work);
}

// Walks nodes [begin, end) of the trie, whose parent the walk stands at with `base` bytes made
// since its depth 0. `visit(i)` hears of every node reached. False: a bound was passed.
template <typename Visit>
bool WalkTrie(const TokenTrie& trie, int32_t begin, int32_t end, GrammarWalk& walk, Visit visit) {
  const MatcherLimits limits;
  if (begin >= end) return true;
  const int32_t base = trie.node(begin).depth - 1;
  for (int32_t i = begin; i < end;) {
    const TokenTrie::Node& node = trie.node(i);
    walk.Back(walk.depth() - static_cast<size_t>(node.depth - 1 - base));
    if (!walk.Step(node.byte)) {
      i = node.skip;
      continue;
    }
    if (walk.exhausted() || walk.work() > limits.max_work) return false;
    visit(i);
    ++i;
  }
  walk.Back(walk.depth());
  return true;
}

void SetBit(std::span<uint64_t> mask, int32_t id) {
  mask[static_cast<size_t>(id) / 64] |= uint64_t{1} << (id % 64);
}

}  // namespace

CompiledGrammar::CompiledGrammar(Automaton automaton, std::shared_ptr<const TokenTrie> trie)
    : automaton_(std::move(automaton)), trie_(std::move(trie)) {}

absl::StatusOr<std::shared_ptr<const CompiledGrammar>> CompiledGrammar::Create(
    Grammar grammar, std::shared_ptr<const TokenTrie> trie, const GrammarLimits& limits) {
  CADRE_ASSIGN_OR_RETURN(Automaton automaton, CompileAutomaton(std::move(grammar), limits));
  auto compiled = std::make_shared<const CompiledGrammar>(std::move(automaton), std::move(trie));
  std::vector<uint64_t> mask(compiled->trie().mask_words());
  absl::Status first = TokenMatcher(compiled).FillMask(mask);
  if (!first.ok()) return InvalidArgument("{}", Message(first));
  return compiled;
}

std::shared_ptr<const CompiledGrammar::StateTokens> CompiledGrammar::Compute(int32_t state,
                                                                             int64_t* work) const {
  auto tokens = std::make_shared<StateTokens>();
  GrammarWalk walk(automaton_);
  walk.Begin(state);
  const bool done = WalkTrie(*trie_, 0, trie_->size(), walk, [&](int32_t i) {
    for (int32_t id : trie_->TokensAt(i)) tokens->ids.push_back(id);
    if (walk.at_end() && trie_->node(i).skip > i + 1) tokens->escapes.push_back(i);
  });
  *work += walk.work();
  if (!done) return nullptr;
  if (tokens->ids.size() > trie_->mask_words()) {
    tokens->words.resize(trie_->mask_words());
    for (int32_t id : tokens->ids) SetBit(tokens->words, id);
    tokens->ids = {};
  }
  tokens->ids.shrink_to_fit();
  tokens->escapes.shrink_to_fit();
  return tokens;
}

absl::StatusOr<std::shared_ptr<const CompiledGrammar::StateTokens>> CompiledGrammar::TokensOf(
    int32_t state, int64_t* work) const {
  {
    std::lock_guard lock(mutex_);
    if (auto it = kept_.find(state); it != kept_.end()) return it->second;
  }
  std::shared_ptr<const StateTokens> tokens = Compute(state, work);
  if (tokens == nullptr) return TooManyParses();
  const size_t bytes = tokens->words.size() * 8 + tokens->ids.size() * 4 +
                       tokens->escapes.size() * 4 + sizeof(StateTokens) + 64;
  std::lock_guard lock(mutex_);
  // Counting states are seen once each; a new beginning is cheaper than an order of use.
  if (kept_bytes_ + bytes > kKeptBytes) {
    kept_.clear();
    kept_bytes_ = 0;
  }
  if (kept_.try_emplace(state, tokens).second) kept_bytes_ += bytes;
  return tokens;
}

TokenMatcher::TokenMatcher(std::shared_ptr<const CompiledGrammar> grammar)
    : grammar_(std::move(grammar)), walk_(grammar_->automaton()) {}

absl::Status TokenMatcher::FillMask(std::span<uint64_t> mask) const {
  CADRE_CHECK(mask.size() == grammar_->trie().mask_words());
  if (walk_.exhausted()) return TooManyParses();
  std::ranges::fill(mask, 0);
  // Escapes by frame: what lies behind a frame's end is found once.
  std::vector<std::pair<int32_t, std::shared_ptr<const CompiledGrammar::StateTokens>>> behind;
  int64_t work = 0;
  for (const GrammarWalk::Parse& parse : walk_.parses()) {
    CADRE_ASSIGN_OR_RETURN(auto tokens, grammar_->TokensOf(parse.state, &work));
    if (work > MatcherLimits().max_work) return TooManyParses();
    for (size_t i = 0; i < tokens->words.size(); ++i) mask[i] |= tokens->words[i];
    for (int32_t id : tokens->ids) SetBit(mask, id);
    if (!tokens->escapes.empty() && parse.frame != GrammarWalk::kOutside) {
      behind.push_back({parse.frame, std::move(tokens)});
    }
  }
  std::ranges::stable_sort(behind, {}, [](const auto& entry) { return entry.first; });
  for (size_t i = 0; i < behind.size();) {
    std::vector<int32_t> escapes;
    const int32_t frame = behind[i].first;
    for (; i < behind.size() && behind[i].first == frame; ++i) {
      const auto& more = behind[i].second->escapes;
      escapes.insert(escapes.end(), more.begin(), more.end());
    }
    std::ranges::sort(escapes);
    escapes.erase(std::unique(escapes.begin(), escapes.end()), escapes.end());
    CADRE_RETURN_IF_ERROR(FillBehind(frame, escapes, mask, &work));
  }
  return absl::OkStatus();
}

absl::Status TokenMatcher::FillBehind(int32_t frame, std::span<const int32_t> escapes,
                                      std::span<uint64_t> mask, int64_t* work) const {
  const TokenTrie& trie = grammar_->trie();
  GrammarWalk walk(grammar_->automaton());
  walk.BeginBehind(walk_, frame);
  if (walk.parses().empty()) return absl::OkStatus();
  for (int32_t escape : escapes) {
    const bool done = WalkTrie(trie, escape + 1, trie.node(escape).skip, walk, [&](int32_t i) {
      for (int32_t id : trie.TokensAt(i)) SetBit(mask, id);
    });
    if (!done || *work + walk.work() > MatcherLimits().max_work) return TooManyParses();
  }
  *work += walk.work();
  return absl::OkStatus();
}

absl::Status TokenMatcher::Accept(int32_t token) {
  const TokenTrie& trie = grammar_->trie();
  const std::string_view bytes =
      token >= 0 && token < trie.vocab_size() ? trie.Bytes(token) : std::string_view();
  if (bytes.empty()) return InvalidArgument("token {} is no text", token);
  return AcceptBytes(bytes);
}

absl::Status TokenMatcher::AcceptBytes(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (walk_.Step(static_cast<uint8_t>(bytes[i]))) continue;
    walk_.Back(i);
    return InvalidArgument("the grammar does not allow byte {} of \"{}\" here", i, bytes);
  }
  if (walk_.exhausted()) return TooManyParses();
  walk_.Settle();
  walk_.ResetWork();
  return absl::OkStatus();
}

}  // namespace cadre
