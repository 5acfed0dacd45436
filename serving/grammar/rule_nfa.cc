#include "serving/grammar/rule_nfa.h"

#include <algorithm>
#include <map>

namespace cadre {
namespace {

int64_t Capped(int64_t value) { return std::min(value, NfaWriter::kTooLarge); }

// Of counts at most kTooLarge.
int64_t CappedProduct(int64_t a, int64_t b) {
  return b != 0 && a > NfaWriter::kTooLarge / b ? NfaWriter::kTooLarge : Capped(a * b);
}

int64_t Copies(const GrammarNode& repeat) {
  return Capped(repeat.max < 0 ? repeat.min + 1 : std::max<int64_t>(repeat.max, 1));
}

}  // namespace

NfaWriter::NfaWriter(Grammar& grammar, const GrammarLimits& limits)
    : grammar_(grammar), limits_(limits) {}

int64_t NfaWriter::Size(NodeId node) {
  if (sizes_.size() < grammar_.nodes.size()) sizes_.resize(grammar_.nodes.size(), -1);
  if (sizes_[node] < 0) {
    const int64_t size = Measure(node);
    sizes_[node] = size;
  }
  return sizes_[node];
}

int64_t NfaWriter::Measure(NodeId id) {
  const GrammarNode& node = grammar_.nodes[id];
  switch (node.kind) {
    case NodeKind::kBytes:
    case NodeKind::kUntil:
      return static_cast<int64_t>(node.bytes.size()) + 1;
    case NodeKind::kClass: {
      const auto sequences = Utf8Sequences(node.ranges);
      auto size = static_cast<int64_t>(1 + sequences.size() / 8);
      for (const auto& sequence : sequences) {
        size += static_cast<int64_t>(sequence.size()) - 1;
      }
      return size;
    }
    case NodeKind::kRule:
      return 1;
    case NodeKind::kRepeat:
      return MeasureRepeat(node);
    case NodeKind::kMembers:
    case NodeKind::kSequence:
    case NodeKind::kChoice:
      break;
  }
  int64_t size = 1;
  const size_t count = node.children.size();
  for (size_t i = 0; i < count; ++i) {
    int64_t part = Size(grammar_.nodes[id].children[i]);
    // A separator stands before every member.
    if (i == 0 && grammar_.nodes[id].kind == NodeKind::kMembers) {
      part = CappedProduct(part, static_cast<int64_t>(count));
    }
    size = Capped(size + part + 2);
  }
  return size;
}

bool NfaWriter::Hoists(int64_t child_size, int64_t count) const {
  return child_size > 4 && CappedProduct(child_size, count) > limits_.max_states / 8;
}

int64_t NfaWriter::MeasureRepeat(const GrammarNode& node) {
  const int64_t child = Size(node.children[0]);
  const int64_t copies = Copies(node);
  return Capped(CappedProduct(Hoists(child, copies) ? 2 : child + 1, copies) + 1);
}

NodeId NfaWriter::Hoist(NodeId child) {
  if (hoisted_.size() <= static_cast<size_t>(child)) hoisted_.resize(child + 1, -1);
  if (hoisted_[child] < 0) {
    const RuleId rule = grammar_.AddRule("");
    grammar_.rules[rule].body = child;
    hoisted_[child] = grammar_.Rule(rule);
  }
  return hoisted_[child];
}

int32_t NfaWriter::NewState() {
  nfa_.states.emplace_back();
  return static_cast<int32_t>(nfa_.states.size()) - 1;
}

RuleNfa NfaWriter::Write(NodeId body) {
  nfa_ = {};
  nfa_.start = NewState();
  nfa_.end = Append(body, nfa_.start);
  return std::move(nfa_);
}

int32_t NfaWriter::Append(NodeId id, int32_t from) {
  const GrammarNode node = grammar_.nodes[id];  // a copy: hoisting adds nodes
  int32_t at = from;
  switch (node.kind) {
    case NodeKind::kBytes:
      for (char c : node.bytes) {
        const int32_t next = NewState();
        const auto byte = static_cast<uint8_t>(c);
        nfa_.states[at].bytes.push_back({byte, byte, next});
        at = next;
      }
      return at;
    case NodeKind::kClass:
      return AppendClass(node, from);
    case NodeKind::kSequence:
      for (NodeId child : node.children) at = Append(child, at);
      return at;
    case NodeKind::kChoice:
      return AppendChoice(node, from);
    case NodeKind::kRepeat:
      return AppendRepeat(node, from);
    case NodeKind::kRule:
      at = NewState();
      nfa_.states[from].calls.push_back({node.rule, at});
      return at;
    case NodeKind::kMembers:
      return AppendMembers(node, from);
    case NodeKind::kUntil:
      return AppendUntil(node, from);
  }
  return at;
}

int32_t NfaWriter::AppendClass(const GrammarNode& node, int32_t from) {
  const int32_t end = NewState();
  for (const auto& sequence : Utf8Sequences(node.ranges)) {
    int32_t at = from;
    for (size_t i = 0; i < sequence.size(); ++i) {
      const int32_t next = i + 1 == sequence.size() ? end : NewState();
      nfa_.states[at].bytes.push_back({sequence[i].first, sequence[i].last, next});
      at = next;
    }
  }
  return end;
}

int32_t NfaWriter::AppendChoice(const GrammarNode& node, int32_t from) {
  const int32_t end = NewState();
  for (NodeId child : node.children) Free(Append(child, from), end);
  return end;
}

int32_t NfaWriter::AppendRepeat(const GrammarNode& node, int32_t from) {
  NodeId child = node.children[0];
  const int64_t copies = Copies(node);
  if (node.max == 0) return from;
  if (Hoists(Size(child), copies)) child = Hoist(child);
  int32_t at = from;
  for (int64_t i = 0; i < node.min; ++i) at = Append(child, at);
  const int32_t end = NewState();
  if (node.max < 0) {
    Free(at, end);
    Free(Append(child, end), end);
    return end;
  }
  for (int64_t i = node.min; i < node.max; ++i) {
    Free(at, end);
    at = Append(child, at);
  }
  Free(at, end);
  return end;
}

// Two tracks of states: before the first member that is present, and behind one. Each member
// itself is written once, whichever track leads to it.
int32_t NfaWriter::AppendMembers(const GrammarNode& node, int32_t from) {
  const size_t count = node.optional.size();
  int32_t none = NewState(), some = -1;
  Free(from, none);
  const int32_t end = NewState();
  for (size_t i = 0; i < count; ++i) {
    const int32_t member = NewState();
    if (none >= 0) Free(none, member);
    if (some >= 0) Free(Append(node.children[0], some), member);
    const int32_t behind = Append(node.children[i + 1], member);
    const int32_t next_some = NewState();
    Free(behind, next_some);
    if (node.optional[i]) {
      if (some >= 0) Free(some, next_some);
    } else {
      none = -1;
    }
    some = next_some;
    if (node.repeats && i + 1 == count) Free(Append(node.children[0], some), member);
  }
  if (none >= 0) Free(none, end);
  if (some >= 0) Free(some, end);
  return end;
}

// The automaton of Knuth, Morris and Pratt: a state per length of the marker's beginning that the
// text ends with.
int32_t NfaWriter::AppendUntil(const GrammarNode& node, int32_t from) {
  const std::string& marker = node.bytes;
  std::vector<int32_t> states;
  for (size_t i = 0; i <= marker.size(); ++i) states.push_back(NewState());
  Free(from, states[0]);
  size_t border = 0;  // of what is matched so far, behind its first byte
  std::vector<std::map<uint8_t, int32_t>> next(marker.size());
  for (size_t i = 0; i < marker.size(); ++i) {
    if (i > 0) next[i] = next[border];
    const auto byte = static_cast<uint8_t>(marker[i]);
    const auto behind = next[i].find(byte);
    const int32_t border_target = behind == next[i].end() ? states[0] : behind->second;
    next[i][byte] = states[i + 1];
    if (i > 0) border = static_cast<size_t>(border_target - states[0]);
    int begin = 0;
    for (const auto& [edge, target] : next[i]) {
      if (begin < edge) {
        nfa_.states[states[i]].bytes.push_back(
            {static_cast<uint8_t>(begin), static_cast<uint8_t>(edge - 1), states[0]});
      }
      nfa_.states[states[i]].bytes.push_back({edge, edge, target});
      begin = edge + 1;
    }
    if (begin <= 255) {
      nfa_.states[states[i]].bytes.push_back({static_cast<uint8_t>(begin), 255, states[0]});
    }
  }
  return states.back();
}

}  // namespace cadre
