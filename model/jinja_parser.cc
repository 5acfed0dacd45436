#include "model/jinja_parser.h"

#include <initializer_list>

namespace cadre::jinja {

const Token& TokenStream::Peek(size_t ahead) const {
  size_t at = pos_ + ahead;
  return at < tokens_.size() ? tokens_[at] : tokens_.back();
}

Token TokenStream::Next() {
  Token token = Peek();
  if (pos_ + 1 < tokens_.size()) ++pos_;
  return token;
}

bool TokenStream::AtOperator(std::string_view text) const {
  return Peek().kind == TokenKind::kOperator && Peek().text == text;
}

bool TokenStream::AtName(std::string_view text) const {
  return Peek().kind == TokenKind::kName && Peek().text == text;
}

bool TokenStream::SkipOperator(std::string_view text) {
  if (!AtOperator(text)) return false;
  Next();
  return true;
}

bool TokenStream::SkipName(std::string_view text) {
  if (!AtName(text)) return false;
  Next();
  return true;
}

absl::Status TokenStream::Expect(TokenKind kind, std::string_view what) {
  if (Peek().kind != kind) return Unexpected(what);
  Next();
  return absl::OkStatus();
}

absl::Status TokenStream::ExpectOperator(std::string_view text) {
  if (!SkipOperator(text)) return Unexpected(fmt::format("'{}'", text));
  return absl::OkStatus();
}

absl::StatusOr<std::string> TokenStream::ExpectName() {
  if (Peek().kind != TokenKind::kName) return Unexpected("a name");
  return Next().text;
}

absl::Status TokenStream::Unexpected(std::string_view wanted) const {
  const Token& token = Peek();
  std::string_view got = token.kind == TokenKind::kEnd        ? "the end of the template"
                         : token.kind == TokenKind::kBlockEnd ? "%}"
                         : token.kind == TokenKind::kPrintEnd ? "}}"
                                                              : std::string_view(token.text);
  return InvalidArgument("line {}: expected {}, got '{}'", token.line, wanted, got.substr(0, 40));
}

namespace {

constexpr int kMaxBlockNesting = 32;

class StatementParser {
 public:
  explicit StatementParser(std::vector<Token> tokens)
      : tokens_(std::move(tokens)), expressions_(&tokens_) {}

  absl::StatusOr<Body> Run() {
    CADRE_ASSIGN_OR_RETURN(Body body, ParseBody({}));
    if (tokens_.Peek().kind != TokenKind::kEnd) return tokens_.Unexpected("the end");
    return body;
  }

 private:
  using StatementPtr = std::unique_ptr<Statement>;

  // Up to one of the `ends` tags, which is left with its name next, or to the end of the template.
  absl::StatusOr<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    if (++nesting_ > kMaxBlockNesting) {
      return InvalidArgument("line {}: blocks nested more than {} deep", tokens_.Peek().line,
                             kMaxBlockNesting);
    }
    Body body;
    while (tokens_.Peek().kind != TokenKind::kEnd) {
      StatementPtr statement = Make(StatementKind::kData);
      if (tokens_.Peek().kind == TokenKind::kData) {
        statement->data = Text(tokens_.Next().text, Origin::kTemplate);
      } else if (tokens_.Peek().kind == TokenKind::kPrintBegin) {
        tokens_.Next();
        statement->kind = StatementKind::kPrint;
        CADRE_ASSIGN_OR_RETURN(statement->expression, expressions_.ParseTuple(true));
        CADRE_RETURN_IF_ERROR(tokens_.Expect(TokenKind::kPrintEnd, "'}}'"));
      } else {
        CADRE_RETURN_IF_ERROR(tokens_.Expect(TokenKind::kBlockBegin, "a tag"));
        for (std::string_view end : ends) {
          if (tokens_.AtName(end)) return --nesting_, std::move(body);
        }
        CADRE_ASSIGN_OR_RETURN(statement, ParseBlock());
      }
      body.push_back(std::move(statement));
    }
    if (ends.size() > 0) return tokens_.Unexpected(fmt::format("'{}'", *(ends.end() - 1)));
    --nesting_;
    return body;
  }

  absl::StatusOr<StatementPtr> ParseBlock() {
    CADRE_ASSIGN_OR_RETURN(std::string name, tokens_.ExpectName());
    if (name == "if") return ParseIf();
    if (name == "for") return ParseFor();
    if (name == "set") return ParseSet();
    if (name == "macro") return ParseMacro();
    if (name == "filter") return ParseFilterBlock();
    if (name == "generation") return ParseGeneration();
    if (name == "break" || name == "continue") {
      if (loops_ == 0) return InvalidArgument("line {}: {} outside of a loop", Line(), name);
      StatementPtr node = Make(name == "break" ? StatementKind::kBreak : StatementKind::kContinue);
      CADRE_RETURN_IF_ERROR(EndBlock());
      return node;
    }
    return InvalidArgument("line {}: the tag '{}' is not supported here", Line(),
                           name.substr(0, 40));
  }

  absl::StatusOr<StatementPtr> ParseIf() {
    StatementPtr node = Make(StatementKind::kIf);
    do {
      Branch branch;
      CADRE_ASSIGN_OR_RETURN(branch.condition, expressions_.ParseTuple(true));
      CADRE_RETURN_IF_ERROR(EndBlock());
      CADRE_ASSIGN_OR_RETURN(branch.body, ParseBody({"elif", "else", "endif"}));
      node->branches.push_back(std::move(branch));
    } while (tokens_.SkipName("elif"));
    if (tokens_.SkipName("else")) {
      CADRE_RETURN_IF_ERROR(EndBlock());
      CADRE_ASSIGN_OR_RETURN(node->otherwise, ParseBody({"endif"}));
    }
    return Close(std::move(node), "endif");
  }

  absl::StatusOr<StatementPtr> ParseFor() {
    StatementPtr node = Make(StatementKind::kFor);
    CADRE_RETURN_IF_ERROR(ParseTargets(node.get(), false));
    if (!tokens_.SkipName("in")) return tokens_.Unexpected("'in'");
    CADRE_ASSIGN_OR_RETURN(node->expression, expressions_.ParseTuple(false));
    if (tokens_.SkipName("if")) {
      CADRE_ASSIGN_OR_RETURN(node->condition, expressions_.Parse());
    }
    if (tokens_.AtName("recursive")) {
      return InvalidArgument("line {}: recursive loops are not supported", Line());
    }
    CADRE_RETURN_IF_ERROR(EndBlock());
    ++loops_;
    CADRE_ASSIGN_OR_RETURN(node->body, ParseBody({"else", "endfor"}));
    --loops_;
    if (tokens_.SkipName("else")) {
      CADRE_RETURN_IF_ERROR(EndBlock());
      CADRE_ASSIGN_OR_RETURN(node->otherwise, ParseBody({"endfor"}));
    }
    return Close(std::move(node), "endfor");
  }

  absl::StatusOr<StatementPtr> ParseSet() {
    StatementPtr node = Make(StatementKind::kSet);
    CADRE_RETURN_IF_ERROR(ParseTargets(node.get(), true));
    if (tokens_.SkipOperator("=")) {
      CADRE_ASSIGN_OR_RETURN(node->expression, expressions_.ParseTuple(true));
      CADRE_RETURN_IF_ERROR(EndBlock());
      return node;
    }
    node->kind = StatementKind::kSetBlock;
    if (node->targets.size() != 1) return tokens_.Unexpected("'='");
    CADRE_ASSIGN_OR_RETURN(node->expression, ParseBodyFilters());
    CADRE_RETURN_IF_ERROR(EndBlock());
    CADRE_ASSIGN_OR_RETURN(node->body, ParseBody({"endset"}));
    return Close(std::move(node), "endset");
  }

  // `| f | g`, applied to the name of an unnamed value that the evaluator binds; null when absent.
  absl::StatusOr<ExpressionPtr> ParseBodyFilters() {
    if (!tokens_.AtOperator("|")) return ExpressionPtr();
    auto value = std::make_unique<Expression>();
    value->kind = ExpressionKind::kName;
    return expressions_.ParseFilters(std::move(value));
  }

  absl::StatusOr<StatementPtr> ParseFilterBlock() {
    StatementPtr node = Make(StatementKind::kFilter);
    auto filter = std::make_unique<Expression>();
    filter->kind = ExpressionKind::kFilter;
    filter->line = Line();
    auto value = std::make_unique<Expression>();
    value->kind = ExpressionKind::kName;
    filter->children.push_back(std::move(value));
    CADRE_ASSIGN_OR_RETURN(filter->text, tokens_.ExpectName());
    CADRE_ASSIGN_OR_RETURN(node->expression, expressions_.ParseFilters(std::move(filter)));
    CADRE_RETURN_IF_ERROR(EndBlock());
    CADRE_ASSIGN_OR_RETURN(node->body, ParseBody({"endfilter"}));
    return Close(std::move(node), "endfilter");
  }

  absl::StatusOr<StatementPtr> ParseMacro() {
    StatementPtr node = Make(StatementKind::kMacro);
    CADRE_ASSIGN_OR_RETURN(node->name, tokens_.ExpectName());
    CADRE_RETURN_IF_ERROR(tokens_.ExpectOperator("("));
    while (!tokens_.AtOperator(")")) {
      if (!node->parameters.empty()) CADRE_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      Parameter parameter;
      CADRE_ASSIGN_OR_RETURN(parameter.name, tokens_.ExpectName());
      if (tokens_.SkipOperator("=")) {
        CADRE_ASSIGN_OR_RETURN(parameter.fallback, expressions_.Parse());
      }
      node->parameters.push_back(std::move(parameter));
    }
    tokens_.Next();
    CADRE_RETURN_IF_ERROR(EndBlock());
    int loops = std::exchange(loops_, 0);
    CADRE_ASSIGN_OR_RETURN(node->body, ParseBody({"endmacro"}));
    loops_ = loops;
    return Close(std::move(node), "endmacro");
  }

  absl::StatusOr<StatementPtr> ParseGeneration() {
    StatementPtr node = Make(StatementKind::kScope);
    CADRE_RETURN_IF_ERROR(EndBlock());
    CADRE_ASSIGN_OR_RETURN(node->body, ParseBody({"endgeneration"}));
    return Close(std::move(node), "endgeneration");
  }

  absl::Status ParseTargets(Statement* node, bool attributes) {
    bool parenthesis = tokens_.SkipOperator("(");
    do {
      Target target;
      CADRE_ASSIGN_OR_RETURN(target.name, tokens_.ExpectName());
      if (attributes && tokens_.SkipOperator(".")) {
        CADRE_ASSIGN_OR_RETURN(target.attribute, tokens_.ExpectName());
      }
      node->targets.push_back(std::move(target));
    } while (tokens_.SkipOperator(","));
    return parenthesis ? tokens_.ExpectOperator(")") : absl::OkStatus();
  }

  absl::StatusOr<StatementPtr> Close(StatementPtr node, std::string_view end) {
    if (!tokens_.SkipName(end)) return tokens_.Unexpected(fmt::format("'{}'", end));
    CADRE_RETURN_IF_ERROR(EndBlock());
    return node;
  }

  absl::Status EndBlock() { return tokens_.Expect(TokenKind::kBlockEnd, "'%}'"); }
  int Line() const { return tokens_.Peek().line; }
  StatementPtr Make(StatementKind kind) {
    auto node = std::make_unique<Statement>();
    node->kind = kind;
    node->line = Line();
    return node;
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int nesting_ = 0;
  int loops_ = 0;
};

}  // namespace

absl::StatusOr<Body> ParseTemplate(std::string_view source) {
  CADRE_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return StatementParser(std::move(tokens)).Run();
}

}  // namespace cadre::jinja
