#include "serving/grammar/token_trie.h"

#include <algorithm>

namespace cadre {

TokenTrie::TokenTrie(std::span<const std::string_view> tokens) {
  std::vector<int32_t> order;
  for (size_t id = 0; id < tokens.size(); ++id) {
    begins_.push_back(static_cast<uint32_t>(bytes_.size()));
    bytes_ += tokens[id];
    if (!tokens[id].empty()) order.push_back(static_cast<int32_t>(id));
  }
  begins_.push_back(static_cast<uint32_t>(bytes_.size()));
  // std::string_view compares bytes unsigned, and a beginning comes before what it begins.
  std::ranges::sort(order, {}, [&](int32_t id) { return std::pair(Bytes(id), id); });
  std::vector<int32_t> path;  // nodes from the root to the last token's
  std::string_view last;
  auto close = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      nodes_[path.back()].skip = static_cast<int32_t>(nodes_.size());
    }
  };
  for (int32_t id : order) {
    const std::string_view bytes = Bytes(id);
    close(std::ranges::mismatch(last, bytes).in1 - last.begin());
    while (path.size() < bytes.size()) {
      path.push_back(static_cast<int32_t>(nodes_.size()));
      nodes_.push_back({.skip = 0,
                        .tokens = static_cast<int32_t>(tokens_.size()),
                        .depth = static_cast<int32_t>(path.size()),
                        .byte = static_cast<uint8_t>(bytes[path.size() - 1])});
    }
    tokens_.push_back(id);
    last = bytes;
  }
  close(0);
  nodes_.push_back({.skip = static_cast<int32_t>(nodes_.size()),
                    .tokens = static_cast<int32_t>(tokens_.size()),
                    .depth = 0,
                    .byte = 0});
}

std::string_view TokenTrie::Bytes(int32_t token) const {
  return std::string_view(bytes_).substr(begins_[token], begins_[token + 1] - begins_[token]);
}

std::shared_ptr<const TokenTrie> TokenTrie::Of(const Tokenizer& tokenizer,
                                               std::span<const int32_t> special) {
  std::vector<std::string_view> tokens(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const bool wanted = !tokenizer.IsSpecial(id) || std::ranges::find(special, id) != special.end();
    if (wanted) tokens[id] = tokenizer.TokenBytes(id);
  }
  return std::make_shared<const TokenTrie>(tokens);
}

}  // namespace cadre
