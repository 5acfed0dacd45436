#include "core/yaml_tree.h"

#include <simdjson.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <memory>
#include <sstream>
#include <unordered_map>
#include <utility>

namespace cadre {
namespace {

constexpr size_t kMaxBytes = 1 << 20;
constexpr size_t kMaxDepth = 32;
constexpr size_t kMaxNodes = 65536;

struct Extent {
  size_t nodes = 1;
  size_t bytes = 0;
  size_t depth = 1;
};

Extent Measure(const YamlNode& node) {
  Extent sum;
  sum.bytes = node.scalar.size();
  for (const std::string& key : node.keys) sum.bytes += key.size();
  for (const YamlNode& item : node.items) {
    const Extent part = Measure(item);
    sum.nodes += part.nodes;
    sum.bytes += part.bytes;
    sum.depth = std::max(sum.depth, part.depth + 1);
  }
  return sum;
}

// Builds the tree from yaml-cpp's events; its own node classes would share aliased subtrees and
// forget duplicate keys. After the first error the remaining events are ignored.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const std::string& name) : name_(name) {}

  absl::StatusOr<YamlNode> Take() {
    if (!status_.ok()) return status_;
    return std::move(root_);
  }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Leaf(Make(YamlNode::Kind::kNull, mark), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (!status_.ok()) return;
    const auto it = anchors_.find(anchor);
    if (it == anchors_.end()) return Fail(mark.line + 1, "an alias inside what it stands for");
    const Extent extent = Measure(it->second);
    nodes_ += extent.nodes;
    aliased_bytes_ += extent.bytes;
    if (nodes_ > kMaxNodes) return TooManyNodes(mark.line + 1);
    if (aliased_bytes_ > kMaxBytes) return Fail(mark.line + 1, "aliases stand for over 1 MiB");
    if (open_.size() + extent.depth > kMaxDepth) return TooDeep(mark.line + 1);
    Attach(YamlNode(it->second), mark.line + 1);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    // The tag of a plain scalar is "?", of a quoted one "!"; others (!!str) are taken as quoted.
    YamlNode node = Make(YamlNode::Kind::kScalar, mark);
    node.quoted = tag != "?" && !tag.empty();
    node.scalar = value;
    if (!node.quoted && (value == "null" || value == "~" || value == "Null" || value == "NULL")) {
      node.kind = YamlNode::Kind::kNull;
    }
    Leaf(std::move(node), anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(Make(YamlNode::Kind::kSequence, mark), anchor);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(Make(YamlNode::Kind::kMap, mark), anchor);
  }
  void OnMapEnd() override { Close(); }

 private:
  struct Frame {
    YamlNode node;
    YAML::anchor_t anchor = 0;
    bool has_key = false;                        // of a map: keys.back() waits for its value
    std::unordered_map<std::string, int> lines;  // of keys seen
  };

  YamlNode Make(YamlNode::Kind kind, const YAML::Mark& mark) {
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    return node;
  }

  void Fail(int line, const std::string& what) {
    if (status_.ok()) status_ = InvalidArgument("{}:{}: {}", name_, line, what);
  }
  void TooManyNodes(int line) {
    Fail(line, fmt::format("more than {} values, aliases expanded", kMaxNodes));
  }
  void TooDeep(int line) { Fail(line, fmt::format("nested deeper than {} levels", kMaxDepth)); }

  bool Count(int line) {
    if (!status_.ok()) return false;
    if (++nodes_ > kMaxNodes) TooManyNodes(line);
    return status_.ok();
  }

  void Leaf(YamlNode node, YAML::anchor_t anchor) {
    if (!Count(node.line)) return;
    if (anchor != 0) anchors_[anchor] = node;
    const int line = node.line;
    Attach(std::move(node), line);
  }

  void Open(YamlNode node, YAML::anchor_t anchor) {
    if (!Count(node.line)) return;
    if (open_.size() >= kMaxDepth) return TooDeep(node.line);
    Frame frame;
    frame.node = std::move(node);
    frame.anchor = anchor;
    open_.push_back(std::move(frame));
  }

  void Close() {
    if (!status_.ok()) return;
    Frame frame = std::move(open_.back());
    open_.pop_back();
    if (frame.anchor != 0) anchors_[frame.anchor] = frame.node;
    const int line = frame.node.line;
    Attach(std::move(frame.node), line);
  }

  void Attach(YamlNode node, int line) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::kMap && !parent.has_key) return Key(node, line);
    parent.has_key = false;
    parent.node.items.push_back(std::move(node));
  }

  void Key(const YamlNode& node, int line) {
    Frame& map = open_.back();
    if (node.kind == YamlNode::Kind::kSequence || node.kind == YamlNode::Kind::kMap) {
      return Fail(line, fmt::format("{} as a key; keys are names", Describe(node)));
    }
    const std::string key = node.scalar;
    if (const auto [it, fresh] = map.lines.emplace(key, line); !fresh) {
      return Fail(line, fmt::format("key \"{}\" was given before, in line {}", key, it->second));
    }
    map.node.keys.push_back(key);
    map.has_key = true;
  }

  const std::string& name_;
  absl::Status status_;
  size_t nodes_ = 0;
  size_t aliased_bytes_ = 0;
  std::vector<Frame> open_;
  std::map<YAML::anchor_t, YamlNode> anchors_;
  YamlNode root_;
};

}  // namespace

std::string Describe(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "null";
    case YamlNode::Kind::kScalar:
      return node.scalar.size() <= 80 ? fmt::format("\"{}\"", node.scalar)
                                      : fmt::format("a string of {} bytes", node.scalar.size());
    case YamlNode::Kind::kSequence:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a mapping";
  }
  return "nothing";
}

absl::StatusOr<YamlNode> ParseYamlTree(std::string_view text, const std::string& name) {
  if (text.size() > kMaxBytes) {
    return InvalidArgument("{}: {} bytes, at most {} are read", name, text.size(), kMaxBytes);
  }
  if (!simdjson::validate_utf8(text.data(), text.size())) {
    return InvalidArgument("{}: is not UTF-8 text", name);
  }
  TreeBuilder builder(name);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    TreeBuilder second(name);
    if (parser.HandleNextDocument(second)) {
      return InvalidArgument("{}: more than one document; a config is one", name);
    }
  } catch (const YAML::Exception& error) {
    return InvalidArgument("{}:{}: {}", name, error.mark.line + 1, error.msg);
  }
  return builder.Take();
}

}  // namespace cadre
