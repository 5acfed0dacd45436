// Time of a grammar's token masks: bench_token_masks [MODEL_DIR]
//
// Walks random texts through a JSON schema and through JSON objects of any kind, over the
// vocabulary of MODEL_DIR or 32,000 made-up tokens, and prints the time to compile and, per mask,
// its mean and percentiles: of the first walks, when states meet the vocabulary for the first time,
// and of later ones.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "serving/grammar/compiled_grammar.h"
#include "serving/grammar/json_grammar.h"
#include "serving/grammar/json_schema.h"

namespace cadre {
namespace {

double Microseconds() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

constexpr char kSchema[] = R"({"type": "object", "properties": {
  "id": {"type": "integer", "minimum": 0}, "name": {"type": "string"},
  "email": {"type": "string", "format": "email"}, "kind": {"enum": ["person", "company", "other"]},
  "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
  "address": {"type": "object", "properties": {"street": {"type": "string"},
    "city": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
    "required": ["street", "city", "zip"]},
  "score": {"type": "number"}, "parent": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
  "required": ["id", "name", "kind", "address"]})";

// Bytes, and words as byte-pair vocabularies have them: with and without a space in front, with
// punctuation of JSON around some.
std::shared_ptr<const TokenTrie> MadeUpVocabulary() {
  std::mt19937 random(1);
  std::set<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.insert(std::string(1, static_cast<char>(byte)));
  static constexpr const char* kSyllables[] = {"ing",      "er", "th", "on",   "re",  "at", "st",
                                               "en",       "al", "ti", "pro",  "com", "le", "ver",
                                               "\xc3\xa9", "1",  "20", "name", "s",   "a",  "o"};
  static constexpr const char* kAround[] = {"\"", "\":", "\",", "{\"", " \"",
                                            "},", "]",   ".\"", "\\n"};
  while (tokens.size() < 32000) {
    std::string word;
    for (size_t i = 1 + random() % 4; i > 0; --i)
      word += kSyllables[random() % std::size(kSyllables)];
    const uint32_t form = random() % 20;
    if (form < 10) word = " " + word;
    if (form == 10) word = kAround[random() % std::size(kAround)] + word;
    if (form == 11) word += kAround[random() % std::size(kAround)];
    tokens.insert(word);
  }
  return std::make_shared<const TokenTrie>(
      std::vector<std::string_view>(tokens.begin(), tokens.end()));
}

void Print(const char* name, std::vector<double> times) {
  std::ranges::sort(times);
  double sum = 0;
  for (double t : times) sum += t;
  auto at = [&](double share) {
    return times[static_cast<size_t>(share * double(times.size() - 1))];
  };
  fmt::print("  {:12} {:6} masks: mean {:8.1f} us, p50 {:8.1f}, p99 {:8.1f}, max {:8.1f}\n", name,
             times.size(), sum / double(times.size()), at(0.5), at(0.99), at(1));
}

void Walks(const CompiledGrammar& grammar, TokenMatcher start, uint32_t seed, int walks,
           std::vector<double>* fill, std::vector<double>* accept) {
  std::mt19937 random(seed);
  std::vector<uint64_t> mask(grammar.trie().mask_words());
  for (int walk = 0; walk < walks; ++walk) {
    TokenMatcher matcher = start;
    for (int step = 0; step < 200; ++step) {
      double begin = Microseconds();
      if (!matcher.FillMask(mask).ok()) return;
      fill->push_back(Microseconds() - begin);
      std::vector<int32_t> allowed;
      for (int32_t id = 0; id < grammar.trie().vocab_size(); ++id) {
        if (mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1) allowed.push_back(id);
      }
      if (allowed.empty()) break;
      const int32_t token = allowed[random() % allowed.size()];
      begin = Microseconds();
      if (!matcher.Accept(token).ok()) return;
      accept->push_back(Microseconds() - begin);
    }
  }
}

int Run(const char* name, const absl::StatusOr<Grammar>& rules,
        std::shared_ptr<const TokenTrie> trie) {
  if (!rules.ok()) return 1;
  const double begin = Microseconds();
  auto grammar = CompiledGrammar::Create(*rules, std::move(trie));
  if (!grammar.ok()) return 1;
  fmt::print("{}: compiled in {:.0f} us, {} states\n", name, Microseconds() - begin,
             (*grammar)->automaton().states());
  std::vector<double> first, later, accept;
  Walks(**grammar, TokenMatcher(*grammar), 1, 10, &first, &accept);
  Walks(**grammar, TokenMatcher(*grammar), 2, 50, &later, &accept);
  Print("first walks", std::move(first));
  Print("later walks", std::move(later));
  Print("tokens taken", std::move(accept));
  return 0;
}

int Main(int argc, char** argv) {
  std::shared_ptr<const TokenTrie> trie;
  if (argc > 1) {
    auto tokenizer = Tokenizer::Load(argv[1]);
    if (!tokenizer.ok()) {
      fmt::print(stderr, "error: {}\n", Message(tokenizer.status()));
      return 1;
    }
    trie = TokenTrie::Of(**tokenizer);
  } else {
    trie = MadeUpVocabulary();
  }
  fmt::print("{} tokens, {} nodes of the vocabulary's tree\n", trie->vocab_size(), trie->size());
  return Run("schema", ParseJsonSchema(nlohmann::ordered_json::parse(kSchema)), trie) |
         Run("json_object", JsonObjectGrammar(), trie);
}

}  // namespace
}  // namespace cadre

int main(int argc, char** argv) { return cadre::Main(argc, argv); }
