// TokenTrie: a vocabulary as a tree over the bytes that its tokens stand for, laid out so that one
// pass over an array visits it. Special tokens are no part of a text and are left out, but for
// those that are asked for by id. Immutable; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace cadre {

class TokenTrie {
 public:
  struct Node {
    int32_t skip;    // the node behind this one's subtree
    int32_t tokens;  // where this node's tokens begin; they end where the next node's begin
    int32_t depth;   // bytes from the root, 1 for its children
    uint8_t byte;
  };

  // tokens[id] are the bytes of a token; empty: it is left out. Views are not kept.
  explicit TokenTrie(std::span<const std::string_view> tokens);
  static std::shared_ptr<const TokenTrie> Of(const Tokenizer& tokenizer,
                                             std::span<const int32_t> special = {});

  // Depth first, without the root; the node size() ends them.
  int32_t size() const { return static_cast<int32_t>(nodes_.size()) - 1; }
  const Node& node(int32_t i) const { return nodes_[static_cast<size_t>(i)]; }
  std::span<const int32_t> TokensAt(int32_t i) const {
    return {tokens_.data() + nodes_[i].tokens,
            static_cast<size_t>(nodes_[i + 1].tokens - nodes_[i].tokens)};
  }
  // Empty for tokens that are left out.
  std::string_view Bytes(int32_t token) const;
  int32_t vocab_size() const { return static_cast<int32_t>(begins_.size()) - 1; }
  size_t mask_words() const { return (static_cast<size_t>(vocab_size()) + 63) / 64; }

 private:
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;
  std::string bytes_;             // of all tokens, by id
  std::vector<uint32_t> begins_;  // in bytes_, by id, and the end
};

}  // namespace cadre
