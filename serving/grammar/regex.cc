#include "serving/grammar/regex.h"

#include <algorithm>

#include "serving/grammar/json_grammar.h"
#include "serving/grammar/text_cursor.h"

namespace cadre {
namespace {

using Ranges = std::vector<CodepointRange>;

const Ranges kDigits = {{'0', '9'}};
const Ranges kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const Ranges kSpace = {{'\t', '\r'}, {' ', ' '}};

std::optional<Ranges> ClassEscape(uint32_t c) {
  switch (c) {
    case 'd':
      return kDigits;
    case 'w':
      return kWord;
    case 's':
      return kSpace;
    case 'D':
      return Complement(kDigits);
    case 'W':
      return Complement(kWord);
    case 'S':
      return Complement(kSpace);
    default:
      return std::nullopt;
  }
}

// What is known and not supported, so that messages can name it.
std::string_view RefusedEscape(uint32_t c) {
  if (c >= '1' && c <= '9') return "back-references";
  switch (c) {
    case 'k':
    case 'g':
      return "back-references";
    case 'b':
    case 'B':
      return "word borders (\\b, \\B)";
    case 'A':
    case 'Z':
    case 'z':
    case 'G':
      return "anchors other than ^ and $";
    case 'p':
    case 'P':
      return "Unicode properties (\\p, \\P)";
    case 'c':
      return "control escapes (\\c)";
    default:
      return "";
  }
}

class RegexParser {
 public:
  RegexParser(TextCursor cursor, const RegexOptions& options, const GrammarLimits& limits,
              Grammar& grammar)
      : cursor_(std::move(cursor)), options_(options), limits_(limits), g_(grammar) {}

  absl::StatusOr<NodeId> Parse() {
    CADRE_ASSIGN_OR_RETURN(NodeId node, Alternatives(0));
    if (!cursor_.done()) return cursor_.Error("a ')' without its '('");
    return node;
  }

 private:
  NodeId Characters(Ranges ranges) {
    return options_.json_string ? JsonStringCharacters(g_, std::move(ranges))
                                : g_.Class(std::move(ranges));
  }
  NodeId AnyText() { return g_.Repeat(Characters({{0, kMaxCodepoint}}), 0, -1); }

  absl::StatusOr<NodeId> Alternatives(int depth) {
    if (depth > limits_.max_nesting) {
      return cursor_.Error("groups are nested deeper than {}", limits_.max_nesting);
    }
    std::vector<NodeId> alternatives;
    do {
      CADRE_ASSIGN_OR_RETURN(NodeId one, Alternative(depth));
      alternatives.push_back(one);
    } while (cursor_.Take("|"));
    return g_.Choice(std::move(alternatives));
  }

  absl::StatusOr<NodeId> Alternative(int depth) {
    const bool outermost = depth == 0;
    std::vector<NodeId> parts;
    const bool begins = outermost && cursor_.Take("^");
    if (outermost && options_.search && !begins) parts.push_back(AnyText());
    bool ends = false;
    while (!cursor_.done() && cursor_.peek() != '|' && cursor_.peek() != ')' && !ends) {
      const uint32_t after = cursor_.peek(1);
      if (outermost && cursor_.peek() == '$' && (after == '|' || after == TextCursor::kEnd)) {
        ends = cursor_.Take("$");
        break;
      }
      CADRE_ASSIGN_OR_RETURN(NodeId part, Repeated(depth));
      parts.push_back(part);
      CADRE_RETURN_IF_ERROR(g_.Check(limits_));
    }
    if (outermost && options_.search && !ends) parts.push_back(AnyText());
    return g_.Sequence(std::move(parts));
  }

  absl::StatusOr<NodeId> Repeated(int depth) {
    CADRE_ASSIGN_OR_RETURN(NodeId atom, Atom(depth));
    if (cursor_.peek() == '{' && !LooksLikeRepeat()) return atom;
    CADRE_ASSIGN_OR_RETURN(const std::optional<RepeatCounts> counts, TakeRepeat(cursor_));
    if (!counts) return atom;
    cursor_.Take("?");  // lazy: the same texts
    if (cursor_.peek() == '+') return cursor_.Error("possessive quantifiers are not supported");
    if (cursor_.peek() == '*' || cursor_.peek() == '?') {
      return cursor_.Error("nothing to repeat");
    }
    return g_.Repeat(atom, counts->min, counts->max);
  }

  // A brace that begins no repetition stands for itself, as everywhere.
  bool LooksLikeRepeat() const {
    const uint32_t c = cursor_.peek(1);
    return (c >= '0' && c <= '9') || c == ',';
  }

  absl::StatusOr<NodeId> Atom(int depth) {
    const uint32_t c = cursor_.peek();
    switch (c) {
      case '(':
        return Group(depth);
      case '[':
        return Class();
      case '.':
        cursor_.Next();
        return Characters(Complement({{'\n', '\n'}, {'\r', '\r'}}));
      case '^':
      case '$':
        return cursor_.Error(
            "'{}' is supported at the ends of the expression or of an alternative outside groups",
            static_cast<char>(c));
      case '*':
      case '+':
      case '?':
        return cursor_.Error("nothing to repeat");
      case '\\': {
        CADRE_ASSIGN_OR_RETURN(Ranges ranges, Escape(false));
        return Characters(std::move(ranges));
      }
      default:
        cursor_.Next();
        return Characters({{c, c}});
    }
  }

  absl::StatusOr<NodeId> Group(int depth) {
    const size_t begin = cursor_.at();
    cursor_.Next();
    if (cursor_.Take("?")) {
      if (cursor_.Take("=") || cursor_.Take("!") || cursor_.Take("<=") || cursor_.Take("<!")) {
        return cursor_.ErrorAt(begin, "look-around is not supported");
      }
      if (cursor_.Take("P=")) return cursor_.ErrorAt(begin, "back-references are not supported");
      const bool named = cursor_.Take("P<") || cursor_.Take("<");
      if (!named && !cursor_.Take(":")) {
        return cursor_.ErrorAt(begin, "inline flags and other (?...) are not supported");
      }
      while (named && !cursor_.done() && cursor_.Next() != '>') {
      }
    }
    CADRE_ASSIGN_OR_RETURN(NodeId inner, Alternatives(depth + 1));
    if (!cursor_.Take(")")) return cursor_.ErrorAt(begin, "a '(' without its ')'");
    return inner;
  }

  absl::StatusOr<Ranges> Escape(bool in_class) {
    const size_t begin = cursor_.at();
    cursor_.Next();
    const uint32_t c = cursor_.Next();
    if (auto ranges = ClassEscape(c)) return *std::move(ranges);
    if (in_class && c == 'b') return Ranges{{'\b', '\b'}};
    if (const std::string_view refused = RefusedEscape(c); !refused.empty()) {
      return cursor_.ErrorAt(begin, fmt::format("{} are not supported", refused));
    }
    std::optional<uint32_t> code;
    static constexpr std::string_view kLetters = "tnrfv0", kCodes("\t\n\r\f\v\0", 6);
    if (c == 'x') {
      code = cursor_.Hex(2);
    } else if (c == 'u' && cursor_.Take("{")) {
      int digits = 0;
      while (digits < 6 && cursor_.peek(digits) != '}' && cursor_.peek(digits) != TextCursor::kEnd)
        ++digits;
      code = digits == 0 ? std::nullopt : cursor_.Hex(digits);
      if (!cursor_.Take("}")) code = std::nullopt;
    } else if (c == 'u') {
      code = cursor_.Hex(4);
    } else if (c < 0x80 && kLetters.find(static_cast<char>(c)) != std::string_view::npos) {
      code = static_cast<uint8_t>(kCodes[kLetters.find(static_cast<char>(c))]);
    } else if (c < 0x80 && !std::isalnum(static_cast<int>(c))) {
      code = c;
    }
    if (!code || *code > kMaxCodepoint) {
      return cursor_.ErrorAt(begin, "this escape is not supported");
    }
    return Ranges{{*code, *code}};
  }

  absl::StatusOr<Ranges> ClassMember() {
    if (cursor_.peek() == '\\') return Escape(true);
    const uint32_t c = cursor_.Next();
    return Ranges{{c, c}};
  }

  absl::StatusOr<NodeId> Class() {
    const size_t begin = cursor_.at();
    cursor_.Next();
    const bool negated = cursor_.Take("^");
    Ranges ranges;
    while (cursor_.peek() != ']' && !cursor_.done()) {
      if (cursor_.peek() == '[' && cursor_.peek(1) == ':') {
        return cursor_.Error("POSIX classes are not supported");
      }
      CADRE_ASSIGN_OR_RETURN(Ranges member, ClassMember());
      const bool range =
          cursor_.peek() == '-' && cursor_.peek(1) != ']' && cursor_.peek(1) != TextCursor::kEnd;
      if (range) {
        cursor_.Next();
        CADRE_ASSIGN_OR_RETURN(Ranges last, ClassMember());
        const bool single = member.size() == 1 && member[0].first == member[0].last &&
                            last.size() == 1 && last[0].first == last[0].last;
        if (!single || member[0].first > last[0].first) {
          return cursor_.Error("this range of characters is empty or not one of characters");
        }
        member[0].last = last[0].last;
      }
      ranges.insert(ranges.end(), member.begin(), member.end());
    }
    if (!cursor_.Take("]")) return cursor_.ErrorAt(begin, "a '[' without its ']'");
    ranges = Normalized(std::move(ranges));
    return Characters(negated ? Complement(ranges) : std::move(ranges));
  }

  TextCursor cursor_;
  const RegexOptions& options_;
  const GrammarLimits& limits_;
  Grammar& g_;
};

}  // namespace

absl::StatusOr<NodeId> AddRegex(std::string_view pattern, const RegexOptions& options,
                                const GrammarLimits& limits, Grammar& grammar) {
  CADRE_ASSIGN_OR_RETURN(TextCursor cursor,
                         TextCursor::Open("regular expression", pattern, limits));
  return RegexParser(std::move(cursor), options, limits, grammar).Parse();
}

absl::StatusOr<Grammar> ParseRegex(std::string_view pattern, const GrammarLimits& limits) {
  Grammar grammar;
  grammar.root = grammar.AddRule("root");
  CADRE_ASSIGN_OR_RETURN(NodeId body, AddRegex(pattern, {}, limits, grammar));
  grammar.rules[grammar.root].body = body;
  return grammar;
}

}  // namespace cadre
