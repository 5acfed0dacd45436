// For the fuzz targets: a walk through the masks of a grammar that a stranger wrote.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "serving/grammar/compiled_grammar.h"

namespace cadre {

// The bytes of `data` choose among the tokens that are allowed.
inline void FuzzWalk(const absl::StatusOr<Grammar>& grammar, const uint8_t* data, size_t size) {
  if (!grammar.ok()) return;
  std::vector<std::string> texts;
  for (int byte = 0; byte < 256; ++byte) texts.push_back(std::string(1, static_cast<char>(byte)));
  for (const char* text : {"ab", "\":", "{\"", "aaaa", "\xc3\xa9x", "}]", "123", "true,"}) {
    texts.push_back(text);
  }
  auto trie =
      std::make_shared<const TokenTrie>(std::vector<std::string_view>(texts.begin(), texts.end()));
  auto compiled = CompiledGrammar::Create(*grammar, trie);
  if (!compiled.ok()) return;
  TokenMatcher matcher(*compiled);
  std::vector<uint64_t> mask(trie->mask_words());
  for (size_t step = 0; step < std::min<size_t>(size, 64); ++step) {
    if (!matcher.FillMask(mask).ok()) return;
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < trie->vocab_size(); ++id) {
      if (mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1) allowed.push_back(id);
    }
    // Every byte is a token.
    CADRE_CHECK(!allowed.empty() || matcher.may_end());
    if (allowed.empty()) return;
    const absl::Status accepted = matcher.Accept(allowed[data[step] % allowed.size()]);
    CADRE_CHECK(accepted.ok() || accepted.code() == absl::StatusCode::kResourceExhausted);
    if (!accepted.ok()) return;
  }
}

}  // namespace cadre
