#include "core/yaml_difference.h"

#include <algorithm>

#include "core/yaml_tree.h"

namespace cadre {
namespace {

using Kind = YamlNode::Kind;

std::string Text(const YamlNode* node) {
  constexpr size_t kLongest = 80;
  if (node == nullptr || node->kind == Kind::kNull) return "nothing";
  if (node->kind == Kind::kMap) return "a mapping";
  if (node->kind == Kind::kSequence) return fmt::format("a list of {}", node->items.size());
  std::string text = node->scalar.empty() ? "\"\"" : node->scalar;
  std::ranges::replace(text, '\n', ' ');
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

const YamlNode* Find(const YamlNode& map, const std::string& key) {
  const auto at = std::ranges::find(map.keys, key);
  return at == map.keys.end() ? nullptr : &map.items[static_cast<size_t>(at - map.keys.begin())];
}

const YamlNode* At(const YamlNode& list, size_t index) {
  return index < list.items.size() ? &list.items[index] : nullptr;
}

void Compare(const std::string& path, const YamlNode* a, const YamlNode* b,
             std::vector<YamlDifference>* out) {
  const bool same_kind = a != nullptr && b != nullptr && a->kind == b->kind;
  if (same_kind && a->kind == Kind::kMap) {
    const std::string head = path.empty() ? "" : path + ".";
    for (size_t i = 0; i < a->keys.size(); ++i) {
      Compare(head + a->keys[i], &a->items[i], Find(*b, a->keys[i]), out);
    }
    for (size_t i = 0; i < b->keys.size(); ++i) {
      if (Find(*a, b->keys[i]) == nullptr) Compare(head + b->keys[i], nullptr, &b->items[i], out);
    }
  } else if (same_kind && a->kind == Kind::kSequence) {
    for (size_t i = 0; i < std::max(a->items.size(), b->items.size()); ++i) {
      Compare(fmt::format("{}[{}]", path, i), At(*a, i), At(*b, i), out);
    }
  } else if (!same_kind || a->scalar != b->scalar) {
    out->push_back({path, Text(a), Text(b)});
  }
}

}  // namespace

absl::StatusOr<std::vector<YamlDifference>> CompareYaml(std::string_view first,
                                                        std::string_view second) {
  CADRE_ASSIGN_OR_RETURN(const YamlNode a, ParseYamlTree(first, "the first"));
  CADRE_ASSIGN_OR_RETURN(const YamlNode b, ParseYamlTree(second, "the second"));
  std::vector<YamlDifference> differences;
  Compare("", &a, &b, &differences);
  return differences;
}

}  // namespace cadre
