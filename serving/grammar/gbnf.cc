#include "serving/grammar/gbnf.h"

#include <map>

#include "serving/grammar/text_cursor.h"

namespace cadre {
namespace {

bool IsNameCharacter(uint32_t c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

class GbnfParser {
 public:
  GbnfParser(TextCursor cursor, const GrammarLimits& limits)
      : cursor_(std::move(cursor)), limits_(limits) {}

  absl::StatusOr<Grammar> Parse() {
    Skip(true);
    while (!cursor_.done()) CADRE_RETURN_IF_ERROR(Rule());
    auto root = rules_.find("root");
    if (root == rules_.end()) return InvalidArgument("grammar: there is no rule 'root'");
    for (const auto& [name, rule] : rules_) {
      if (g_.rules[rule].body < 0) {
        return InvalidArgument("grammar: the rule '{}' is used and not defined", name);
      }
    }
    g_.root = root->second;
    CADRE_RETURN_IF_ERROR(g_.Check(limits_));
    return std::move(g_);
  }

 private:
  // White space and comments; line breaks only where they end nothing.
  void Skip(bool lines) {
    while (!cursor_.done()) {
      const uint32_t c = cursor_.peek();
      if (c == '#') {
        while (!cursor_.done() && cursor_.peek() != '\n') cursor_.Next();
      } else if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) {
        cursor_.Next();
      } else {
        return;
      }
    }
  }

  std::string Name() {
    std::string name;
    while (IsNameCharacter(cursor_.peek())) name += static_cast<char>(cursor_.Next());
    return name;
  }
  RuleId RuleOf(const std::string& name) {
    const auto [it, fresh] = rules_.try_emplace(name, -1);
    if (fresh) it->second = g_.AddRule(name);
    return it->second;
  }

  absl::Status Rule() {
    const std::string name = Name();
    if (name.empty()) return cursor_.Error("a rule's name must come here");
    Skip(false);
    if (!cursor_.Take("::=")) return cursor_.Error("'::=' must come behind the name '{}'", name);
    Skip(true);
    const RuleId rule = RuleOf(name);
    if (g_.rules[rule].body >= 0) return cursor_.Error("the rule '{}' is defined twice", name);
    CADRE_ASSIGN_OR_RETURN(NodeId body, Alternatives(0));
    g_.rules[rule].body = body;
    const uint32_t c = cursor_.peek();
    if (c != '\n' && c != '\r' && c != TextCursor::kEnd) {
      return cursor_.Error("a rule must end here, at a line break");
    }
    Skip(true);
    return g_.Check(limits_);
  }

  absl::StatusOr<NodeId> Alternatives(int depth) {
    if (depth > limits_.max_nesting) {
      return cursor_.Error("groups are nested deeper than {}", limits_.max_nesting);
    }
    std::vector<NodeId> alternatives;
    while (true) {
      CADRE_ASSIGN_OR_RETURN(NodeId one, Sequence(depth));
      alternatives.push_back(one);
      if (!cursor_.Take("|")) return g_.Choice(std::move(alternatives));
      Skip(true);
    }
  }

  absl::StatusOr<NodeId> Sequence(int depth) {
    std::vector<NodeId> parts;
    while (true) {
      const uint32_t c = cursor_.peek();
      const bool starts = c == '"' || c == '[' || c == '(' || c == '.' || IsNameCharacter(c);
      if (c == '<' || c == '!') return cursor_.Error("token references are not supported");
      if (!starts) return g_.Sequence(std::move(parts));
      CADRE_ASSIGN_OR_RETURN(NodeId part, Item(depth));
      Skip(depth > 0);
      while (true) {
        CADRE_ASSIGN_OR_RETURN(const std::optional<RepeatCounts> counts, TakeRepeat(cursor_));
        if (!counts) break;
        part = g_.Repeat(part, counts->min, counts->max);
        if (++repeats_ > limits_.max_nesting) return cursor_.Error("too many repetitions of one");
        Skip(depth > 0);
      }
      repeats_ = 0;
      parts.push_back(part);
      CADRE_RETURN_IF_ERROR(g_.Check(limits_));
    }
  }

  absl::StatusOr<NodeId> Item(int depth) {
    if (cursor_.peek() == '"') return Literal();
    if (cursor_.peek() == '[') return Class();
    if (cursor_.Take(".")) return g_.Class({{0, kMaxCodepoint}});
    const size_t begin = cursor_.at();
    if (cursor_.Take("(")) {
      Skip(true);
      CADRE_ASSIGN_OR_RETURN(NodeId inner, Alternatives(depth + 1));
      if (!cursor_.Take(")")) return cursor_.ErrorAt(begin, "a '(' without its ')'");
      return inner;
    }
    return g_.Rule(RuleOf(Name()));
  }

  absl::StatusOr<uint32_t> Character() {
    const size_t begin = cursor_.at();
    const uint32_t c = cursor_.Next();
    if (c != '\\') return c;
    const uint32_t escaped = cursor_.Next();
    std::optional<uint32_t> code;
    switch (escaped) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'x':
        code = cursor_.Hex(2);
        break;
      case 'u':
        code = cursor_.Hex(4);
        break;
      case 'U':
        code = cursor_.Hex(8);
        break;
      case '\\':
      case '"':
      case '[':
      case ']':
      case '-':
      case '^':
        return escaped;
      default:
        break;
    }
    if (!code || *code > kMaxCodepoint) {
      return cursor_.ErrorAt(begin, "this escape is not supported");
    }
    return *code;
  }

  absl::StatusOr<NodeId> Literal() {
    const size_t begin = cursor_.at();
    cursor_.Next();
    std::string bytes;
    while (cursor_.peek() != '"') {
      if (cursor_.done() || cursor_.peek() == '\n') {
        return cursor_.ErrorAt(begin, "a '\"' without its end");
      }
      CADRE_ASSIGN_OR_RETURN(const uint32_t c, Character());
      if (c >= 0xD800 && c <= 0xDFFF) return cursor_.Error("a surrogate is no character");
      bytes += Utf8(c);
    }
    cursor_.Next();
    return g_.Bytes(bytes);
  }

  absl::StatusOr<NodeId> Class() {
    const size_t begin = cursor_.at();
    cursor_.Next();
    const bool negated = cursor_.Take("^");
    std::vector<CodepointRange> ranges;
    while (cursor_.peek() != ']') {
      if (cursor_.done()) return cursor_.ErrorAt(begin, "a '[' without its ']'");
      CADRE_ASSIGN_OR_RETURN(const uint32_t first, Character());
      uint32_t last = first;
      if (cursor_.peek() == '-' && cursor_.peek(1) != ']') {
        cursor_.Next();
        CADRE_ASSIGN_OR_RETURN(last, Character());
      }
      if (last < first || last > kMaxCodepoint) {
        return cursor_.ErrorAt(begin, "this range of characters is empty");
      }
      ranges.push_back({first, last});
    }
    cursor_.Next();
    ranges = Normalized(std::move(ranges));
    return g_.Class(negated ? Complement(ranges) : std::move(ranges));
  }

  TextCursor cursor_;
  const GrammarLimits& limits_;
  Grammar g_;
  std::map<std::string, RuleId> rules_;
  int repeats_ = 0;  // of the item at hand
};

}  // namespace

absl::StatusOr<Grammar> ParseGbnf(std::string_view text, const GrammarLimits& limits) {
  CADRE_ASSIGN_OR_RETURN(TextCursor cursor, TextCursor::Open("grammar", text, limits));
  return GbnfParser(std::move(cursor), limits).Parse();
}

}  // namespace cadre
