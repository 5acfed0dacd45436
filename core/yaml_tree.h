// A YAML document as a plain tree with line numbers, read from untrusted text with bounds on size,
// depth and nodes (aliases count as often as they are used). For core/config.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre {

struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };
  Kind kind = Kind::kNull;
  bool quoted = false;  // a scalar in quotes is a string whatever it looks like
  int line = 0;         // from 1
  std::string scalar;
  std::vector<std::string> keys;  // of a map: distinct, in file order; keys[i] names items[i]
  std::vector<YamlNode> items;
};

// "null", "a string", "a list" or "a mapping", with a scalar's text.
std::string Describe(const YamlNode& node);

// Reads one document. `name` (a path, a flag) begins each error, the line follows it. Refused: more
// than 1 MiB, invalid UTF-8, more than one document, depth over 32, more than 65,536 nodes, keys
// that are no scalars, a key twice in one mapping.
absl::StatusOr<YamlNode> ParseYamlTree(std::string_view text, const std::string& name);

}  // namespace cadre
