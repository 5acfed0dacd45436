#include <algorithm>
#include <charconv>

#include "model/jinja_parser.h"

namespace cadre::jinja {
namespace {

constexpr int kMaxNesting = 64;
constexpr int kMaxTreeDepth = 250;

class Nested {
 public:
  explicit Nested(int* depth) : depth_(depth) { ++*depth_; }
  ~Nested() { --*depth_; }

 private:
  int* depth_;
};

}  // namespace

ExpressionPtr ExpressionParser::Make(ExpressionKind kind, ExpressionPtr child) {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = tokens_->Peek().line;
  if (child) node->children.push_back(std::move(child));
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::Finish(ExpressionPtr node) {
  auto cover = [&](const ExpressionPtr& child) {
    if (child) node->depth = std::max(node->depth, child->depth + 1);
  };
  for (const auto& child : node->children) cover(child);
  for (const auto& child : node->positional) cover(child);
  for (const auto& child : node->named) cover(child.second);
  if (node->depth > kMaxTreeDepth) {
    return InvalidArgument("line {}: an expression of more than {} terms", node->line,
                           kMaxTreeDepth);
  }
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::Parse() { return ParseConditional(); }

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseTuple(bool ternary) {
  auto one = [&] { return ternary ? ParseConditional() : ParseBinary(0); };
  CADRE_ASSIGN_OR_RETURN(ExpressionPtr first, one());
  if (!tokens_->AtOperator(",")) return first;
  ExpressionPtr tuple = Make(ExpressionKind::kList, std::move(first));
  while (tokens_->SkipOperator(",")) {
    TokenKind next = tokens_->Peek().kind;
    if (next == TokenKind::kBlockEnd || next == TokenKind::kPrintEnd || tokens_->AtOperator(")")) {
      break;
    }
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr item, one());
    tuple->children.push_back(std::move(item));
  }
  return Finish(std::move(tuple));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseConditional() {
  Nested nested(&nesting_);
  if (nesting_ > kMaxNesting) {
    return InvalidArgument("line {}: expressions nested more than {} deep", tokens_->Peek().line,
                           kMaxNesting);
  }
  CADRE_ASSIGN_OR_RETURN(ExpressionPtr value, ParseBinary(0));
  while (tokens_->SkipName("if")) {
    ExpressionPtr node = Make(ExpressionKind::kConditional, std::move(value));
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr condition, ParseBinary(0));
    ExpressionPtr otherwise;
    if (tokens_->SkipName("else")) {
      CADRE_ASSIGN_OR_RETURN(otherwise, ParseConditional());
    }
    node->children.push_back(std::move(condition));
    node->children.push_back(std::move(otherwise));
    CADRE_ASSIGN_OR_RETURN(value, Finish(std::move(node)));
  }
  return value;
}

// Levels: 0 or, 1 and, 2 not and comparisons, 3 + -, 4 ~, 5 * / // %.
absl::StatusOr<ExpressionPtr> ExpressionParser::ParseBinary(int precedence) {
  if (precedence == 2) return ParseCompare();
  if (precedence == 6) return ParseUnary(true);
  auto operation = [&]() -> std::string {
    if (precedence == 0) return tokens_->AtName("or") ? "or" : "";
    if (precedence == 1) return tokens_->AtName("and") ? "and" : "";
    static constexpr std::string_view kOperators[] = {"+", "-", "~", "*", "/", "//", "%"};
    static constexpr int kLevels[] = {3, 3, 4, 5, 5, 5, 5};
    for (size_t i = 0; i < std::size(kOperators); ++i) {
      if (kLevels[i] == precedence && tokens_->AtOperator(kOperators[i])) {
        return std::string(kOperators[i]);
      }
    }
    return "";
  };
  CADRE_ASSIGN_OR_RETURN(ExpressionPtr left, ParseBinary(precedence + 1));
  for (std::string op = operation(); !op.empty(); op = operation()) {
    ExpressionKind kind = precedence == 0   ? ExpressionKind::kOr
                          : precedence == 1 ? ExpressionKind::kAnd
                                            : ExpressionKind::kBinary;
    ExpressionPtr node = Make(kind, std::move(left));
    node->text = op;
    tokens_->Next();
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr right, ParseBinary(precedence + 1));
    node->children.push_back(std::move(right));
    CADRE_ASSIGN_OR_RETURN(left, Finish(std::move(node)));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseCompare() {
  if (tokens_->AtName("not")) {
    Nested nested(&nesting_);
    if (nesting_ > kMaxNesting) return tokens_->Unexpected("fewer 'not'");
    ExpressionPtr node = Make(ExpressionKind::kNot);
    tokens_->Next();
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseCompare());
    node->children.push_back(std::move(operand));
    return Finish(std::move(node));
  }
  CADRE_ASSIGN_OR_RETURN(ExpressionPtr first, ParseBinary(3));
  ExpressionPtr node = Make(ExpressionKind::kCompare, std::move(first));
  while (true) {
    static constexpr std::string_view kOperators[] = {"==", "!=", "<", "<=", ">", ">="};
    std::string op;
    for (std::string_view candidate : kOperators) {
      if (tokens_->AtOperator(candidate)) op = candidate;
    }
    if (tokens_->AtName("in")) op = "in";
    const Token& ahead = tokens_->Peek(1);
    if (tokens_->AtName("not") && ahead.kind == TokenKind::kName && ahead.text == "in") {
      op = "not in";
      tokens_->Next();
    }
    if (op.empty()) break;
    tokens_->Next();
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseBinary(3));
    node->operators.push_back(op);
    node->children.push_back(std::move(operand));
  }
  if (node->operators.empty()) return std::move(node->children[0]);
  return Finish(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseUnary(bool with_filters) {
  Nested nested(&nesting_);
  if (nesting_ > kMaxNesting) return tokens_->Unexpected("fewer signs");
  ExpressionPtr value;
  if (tokens_->AtOperator("-") || tokens_->AtOperator("+")) {
    ExpressionPtr node = Make(ExpressionKind::kNegate);
    bool negative = tokens_->Next().text == "-";
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseUnary(false));
    if (negative) {
      node->children.push_back(std::move(operand));
      CADRE_ASSIGN_OR_RETURN(value, Finish(std::move(node)));
    } else {
      value = std::move(operand);
    }
  } else {
    CADRE_ASSIGN_OR_RETURN(value, ParsePrimary());
  }
  CADRE_ASSIGN_OR_RETURN(value, ParsePostfix(std::move(value)));
  if (!with_filters) return value;
  return ParseFiltersAndTests(std::move(value));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePrimary() {
  if (tokens_->AtOperator("(")) return ParseParenthesis();
  if (tokens_->AtOperator("[")) return ParseListDisplay();
  if (tokens_->AtOperator("{")) return ParseDictDisplay();
  return ParseLiteral();
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseLiteral() {
  ExpressionPtr node = Make(ExpressionKind::kLiteral);
  const Token& token = tokens_->Peek();
  const char* begin = token.text.data();
  std::string digits = token.text;
  digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
  if (token.kind == TokenKind::kString) {
    std::string text;
    while (tokens_->Peek().kind == TokenKind::kString) text += tokens_->Next().text;
    node->literal = Value::Of(Text(std::move(text), Origin::kTemplate));
    return node;
  }
  if (token.kind == TokenKind::kInteger) {
    int64_t value = 0;
    auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (result.ec != std::errc()) return tokens_->Unexpected("an integer of 64 bits");
    node->literal = Value::Of(value);
  } else if (token.kind == TokenKind::kFloat) {
    double value = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), value);
    node->literal = Value::Of(value);
  } else if (token.kind != TokenKind::kName) {
    return tokens_->Unexpected("an expression");
  } else if (token.text == "true" || token.text == "True") {
    node->literal = Value::Of(true);
  } else if (token.text == "false" || token.text == "False") {
    node->literal = Value::Of(false);
  } else if (token.text == "none" || token.text == "None") {
    node->literal = Value::OfNone();
  } else {
    node->kind = ExpressionKind::kName;
    node->text.assign(begin, token.text.size());
  }
  tokens_->Next();
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseParenthesis() {
  tokens_->Next();
  if (tokens_->SkipOperator(")")) return Make(ExpressionKind::kList);
  CADRE_ASSIGN_OR_RETURN(ExpressionPtr value, ParseTuple(true));
  CADRE_RETURN_IF_ERROR(tokens_->ExpectOperator(")"));
  return value;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseListDisplay() {
  ExpressionPtr node = Make(ExpressionKind::kList);
  tokens_->Next();
  while (!tokens_->AtOperator("]")) {
    if (!node->children.empty()) CADRE_RETURN_IF_ERROR(tokens_->ExpectOperator(","));
    if (tokens_->AtOperator("]")) break;
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr item, Parse());
    node->children.push_back(std::move(item));
  }
  CADRE_RETURN_IF_ERROR(tokens_->ExpectOperator("]"));
  return Finish(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseDictDisplay() {
  ExpressionPtr node = Make(ExpressionKind::kDict);
  tokens_->Next();
  while (!tokens_->AtOperator("}")) {
    if (!node->children.empty()) CADRE_RETURN_IF_ERROR(tokens_->ExpectOperator(","));
    if (tokens_->AtOperator("}")) break;
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr key, Parse());
    CADRE_RETURN_IF_ERROR(tokens_->ExpectOperator(":"));
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr value, Parse());
    node->children.push_back(std::move(key));
    node->children.push_back(std::move(value));
  }
  CADRE_RETURN_IF_ERROR(tokens_->ExpectOperator("}"));
  return Finish(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePostfix(ExpressionPtr value) {
  while (true) {
    if (tokens_->AtOperator(".")) {
      ExpressionPtr node = Make(ExpressionKind::kAttribute, std::move(value));
      tokens_->Next();
      CADRE_ASSIGN_OR_RETURN(node->text, tokens_->ExpectName());
      CADRE_ASSIGN_OR_RETURN(value, Finish(std::move(node)));
    } else if (tokens_->AtOperator("[")) {
      CADRE_ASSIGN_OR_RETURN(value, ParseSubscript(std::move(value)));
    } else if (tokens_->AtOperator("(")) {
      ExpressionPtr node = Make(ExpressionKind::kCall, std::move(value));
      CADRE_RETURN_IF_ERROR(ParseArguments(node.get()));
      CADRE_ASSIGN_OR_RETURN(value, Finish(std::move(node)));
    } else {
      return value;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseSubscript(ExpressionPtr value) {
  ExpressionPtr node = Make(ExpressionKind::kItem, std::move(value));
  tokens_->Next();
  for (int part = 0; part < 3; ++part) {
    ExpressionPtr bound;
    if (!tokens_->AtOperator(":") && !tokens_->AtOperator("]")) {
      CADRE_ASSIGN_OR_RETURN(bound, part == 0 ? ParseTuple(true) : Parse());
    }
    node->children.push_back(std::move(bound));
    if (part == 2 || !tokens_->SkipOperator(":")) break;
    node->kind = ExpressionKind::kSlice;
  }
  CADRE_RETURN_IF_ERROR(tokens_->ExpectOperator("]"));
  if (node->kind == ExpressionKind::kItem && !node->children[1]) {
    return tokens_->Unexpected("an index");
  }
  if (node->kind == ExpressionKind::kSlice) node->children.resize(4);
  return Finish(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseFiltersAndTests(ExpressionPtr value) {
  while (true) {
    if (tokens_->AtOperator("|")) {
      CADRE_ASSIGN_OR_RETURN(value, ParseFilter(std::move(value)));
    } else if (tokens_->AtName("is")) {
      CADRE_ASSIGN_OR_RETURN(value, ParseTest(std::move(value)));
    } else if (tokens_->AtOperator("(")) {
      CADRE_ASSIGN_OR_RETURN(value, ParsePostfix(std::move(value)));
    } else {
      return value;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseFilters(ExpressionPtr value) {
  while (tokens_->AtOperator("|")) {
    CADRE_ASSIGN_OR_RETURN(value, ParseFilter(std::move(value)));
  }
  return value;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseFilter(ExpressionPtr value) {
  ExpressionPtr node = Make(ExpressionKind::kFilter, std::move(value));
  tokens_->Next();
  CADRE_ASSIGN_OR_RETURN(node->text, tokens_->ExpectName());
  if (tokens_->AtOperator("(")) CADRE_RETURN_IF_ERROR(ParseArguments(node.get()));
  return Finish(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseTest(ExpressionPtr value) {
  ExpressionPtr node = Make(ExpressionKind::kTest, std::move(value));
  tokens_->Next();
  bool negated = tokens_->SkipName("not");
  CADRE_ASSIGN_OR_RETURN(node->text, tokens_->ExpectName());
  const Token& next = tokens_->Peek();
  auto is_word = [&](std::string_view word) { return tokens_->AtName(word); };
  bool literal = next.kind == TokenKind::kString || next.kind == TokenKind::kInteger ||
                 next.kind == TokenKind::kFloat || tokens_->AtOperator("[") ||
                 tokens_->AtOperator("{");
  bool name = next.kind == TokenKind::kName && !is_word("else") && !is_word("or") &&
              !is_word("and") && !is_word("is") && !is_word("if") && !is_word("in") &&
              !is_word("not");
  if (tokens_->AtOperator("(")) {
    CADRE_RETURN_IF_ERROR(ParseArguments(node.get()));
  } else if (literal || name) {
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePrimary());
    CADRE_ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    node->positional.push_back(std::move(argument));
  }
  CADRE_ASSIGN_OR_RETURN(ExpressionPtr test, Finish(std::move(node)));
  if (!negated) return test;
  return Finish(Make(ExpressionKind::kNot, std::move(test)));
}

absl::Status ExpressionParser::ParseArguments(Expression* call) {
  tokens_->Next();
  bool first = true;
  while (!tokens_->AtOperator(")")) {
    if (!first) CADRE_RETURN_IF_ERROR(tokens_->ExpectOperator(","));
    first = false;
    if (tokens_->AtOperator(")")) break;
    const Token& ahead = tokens_->Peek(1);
    bool named = tokens_->Peek().kind == TokenKind::kName && ahead.kind == TokenKind::kOperator &&
                 ahead.text == "=";
    std::string name;
    if (named) {
      name = tokens_->Next().text;
      tokens_->Next();
    } else if (!call->named.empty()) {
      return tokens_->Unexpected("a named argument");
    }
    CADRE_ASSIGN_OR_RETURN(ExpressionPtr argument, Parse());
    if (named) {
      call->named.emplace_back(std::move(name), std::move(argument));
    } else {
      call->positional.push_back(std::move(argument));
    }
  }
  return tokens_->ExpectOperator(")");
}

}  // namespace cadre::jinja
