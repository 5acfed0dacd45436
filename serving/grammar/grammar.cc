#include "serving/grammar/grammar.h"

#include <algorithm>

namespace cadre {

RuleId Grammar::AddRule(std::string name) {
  rules.push_back({std::move(name), -1});
  return static_cast<RuleId>(rules.size()) - 1;
}

NodeId Grammar::Add(GrammarNode node) {
  nodes.push_back(std::move(node));
  return static_cast<NodeId>(nodes.size()) - 1;
}

NodeId Grammar::Bytes(std::string_view bytes) {
  return Add({.kind = NodeKind::kBytes, .bytes = std::string(bytes)});
}

NodeId Grammar::Class(std::vector<CodepointRange> ranges) {
  return Add({.kind = NodeKind::kClass, .ranges = Normalized(std::move(ranges))});
}

NodeId Grammar::Sequence(std::vector<NodeId> children) {
  if (children.size() == 1) return children[0];
  return Add({.kind = NodeKind::kSequence, .children = std::move(children)});
}

NodeId Grammar::Choice(std::vector<NodeId> children) {
  if (children.size() == 1) return children[0];
  return Add({.kind = NodeKind::kChoice, .children = std::move(children)});
}

NodeId Grammar::Repeat(NodeId child, int64_t min, int64_t max) {
  return Add({.kind = NodeKind::kRepeat, .min = min, .max = max, .children = {child}});
}

NodeId Grammar::Rule(RuleId rule) { return Add({.kind = NodeKind::kRule, .rule = rule}); }

NodeId Grammar::Members(NodeId separator, std::vector<NodeId> members, std::vector<bool> optional,
                        bool repeats) {
  CADRE_CHECK(members.size() == optional.size());
  members.insert(members.begin(), separator);
  return Add({.kind = NodeKind::kMembers,
              .repeats = repeats,
              .children = std::move(members),
              .optional = std::move(optional)});
}

NodeId Grammar::Until(std::string_view marker) {
  CADRE_CHECK(!marker.empty());
  return Add({.kind = NodeKind::kUntil, .bytes = std::string(marker)});
}

absl::Status Grammar::Check(const GrammarLimits& limits) {
  if (rules.size() > limits.max_rules) {
    return InvalidArgument("the grammar has {} rules, allowed are {}", rules.size(),
                           limits.max_rules);
  }
  if (nodes.size() > limits.max_nodes) {
    return InvalidArgument("the grammar has {} parts, allowed are {}", nodes.size(),
                           limits.max_nodes);
  }
  for (; checked_ < nodes.size(); ++checked_) {
    letters_ += nodes[checked_].bytes.size() + nodes[checked_].ranges.size();
  }
  if (letters_ > limits.max_letters) {
    return InvalidArgument(
        "the grammar has {} bytes of text and ranges of characters in its parts, allowed are {}",
        letters_, limits.max_letters);
  }
  return absl::OkStatus();
}

std::vector<CodepointRange> Normalized(std::vector<CodepointRange> ranges) {
  std::ranges::sort(ranges, {}, &CodepointRange::first);
  std::vector<CodepointRange> merged;
  for (const CodepointRange& range : ranges) {
    if (!merged.empty() && range.first <= merged.back().last + 1) {
      merged.back().last = std::max(merged.back().last, range.last);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

std::vector<CodepointRange> Complement(const std::vector<CodepointRange>& ranges) {
  std::vector<CodepointRange> rest;
  uint32_t next = 0;
  for (const CodepointRange& range : ranges) {
    if (range.first > next) rest.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kMaxCodepoint) rest.push_back({next, kMaxCodepoint});
  return rest;
}

std::vector<CodepointRange> Without(const std::vector<CodepointRange>& ranges,
                                    const std::vector<CodepointRange>& removed) {
  std::vector<CodepointRange> outside = Complement(Normalized(ranges));
  outside.insert(outside.end(), removed.begin(), removed.end());
  return Complement(Normalized(std::move(outside)));
}

std::string Utf8(uint32_t c) {
  auto tail = [](uint32_t bits) { return static_cast<char>(0x80 | (bits & 0x3F)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | (c >> 6)), tail(c)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | (c >> 12)), tail(c >> 6), tail(c)};
  return {static_cast<char>(0xF0 | (c >> 18)), tail(c >> 12), tail(c >> 6), tail(c)};
}

namespace {

// Both ends have encodings of one length. Where they differ in a byte before the last, the range is
// cut so that every piece is a product of byte ranges.
void AppendSequences(uint32_t first, uint32_t last, int length,
                     std::vector<std::vector<ByteRange8>>* out) {
  for (int tail = 1; tail < length; ++tail) {
    const uint32_t mask = (uint32_t{1} << (6 * tail)) - 1;
    if ((first & ~mask) == (last & ~mask)) continue;
    if ((first & mask) != 0) {
      AppendSequences(first, first | mask, length, out);
      return AppendSequences((first | mask) + 1, last, length, out);
    }
    if ((last & mask) != mask) {
      AppendSequences(first, (last & ~mask) - 1, length, out);
      return AppendSequences(last & ~mask, last, length, out);
    }
  }
  const std::string low = Utf8(first), high = Utf8(last);
  std::vector<ByteRange8> sequence;
  for (size_t i = 0; i < low.size(); ++i) {
    sequence.push_back({static_cast<uint8_t>(low[i]), static_cast<uint8_t>(high[i])});
  }
  out->push_back(std::move(sequence));
}

}  // namespace

std::vector<std::vector<ByteRange8>> Utf8Sequences(const std::vector<CodepointRange>& ranges) {
  // Blocks of one encoded length, without the surrogates.
  struct Block {
    uint32_t first, last;
    int length;
  };
  static constexpr Block kBlocks[] = {{0, 0x7F, 1},
                                      {0x80, 0x7FF, 2},
                                      {0x800, 0xD7FF, 3},
                                      {0xE000, 0xFFFF, 3},
                                      {0x10000, kMaxCodepoint, 4}};
  std::vector<std::vector<ByteRange8>> sequences;
  for (const CodepointRange& range : ranges) {
    for (const Block& block : kBlocks) {
      const uint32_t first = std::max(range.first, block.first);
      const uint32_t last = std::min(range.last, block.last);
      if (first <= last) AppendSequences(first, last, block.length, &sequences);
    }
  }
  return sequences;
}

}  // namespace cadre
