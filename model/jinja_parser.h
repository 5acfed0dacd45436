// Template text to syntax tree. Nesting is bounded (expressions 64, statements 32 deep), so hostile
// text cannot exhaust the stack. What the language has beyond chat templates' needs (imports,
// includes, inheritance, call blocks, recursive loops) is refused with its name.
#pragma once

#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/jinja_ast.h"
#include "model/jinja_lexer.h"

namespace cadre::jinja {

absl::StatusOr<Body> ParseTemplate(std::string_view source);

// A position in the token list; the two parsers below share one.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  const Token& Peek(size_t ahead = 0) const;
  Token Next();
  bool AtOperator(std::string_view text) const;
  bool AtName(std::string_view text) const;
  bool SkipOperator(std::string_view text);  // true and past it when it is next
  bool SkipName(std::string_view text);
  absl::Status Expect(TokenKind kind, std::string_view what);
  absl::Status ExpectOperator(std::string_view text);
  absl::StatusOr<std::string> ExpectName();
  absl::Status Unexpected(std::string_view wanted) const;

 private:
  std::vector<Token> tokens_;
  size_t pos_ = 0;
};

// Jinja's expression grammar by precedence climbing.
class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream* tokens) : tokens_(tokens) {}
  absl::StatusOr<ExpressionPtr> Parse();  // with the ternary
  // With a bare tuple (`a, b`). `ternary` is false for the iterable of a for, whose `if` filters.
  absl::StatusOr<ExpressionPtr> ParseTuple(bool ternary);
  // The filters behind a value: `| f | g(x)`.
  absl::StatusOr<ExpressionPtr> ParseFilters(ExpressionPtr value);

 private:
  absl::StatusOr<ExpressionPtr> ParseConditional();
  absl::StatusOr<ExpressionPtr> ParseBinary(int precedence);
  absl::StatusOr<ExpressionPtr> ParseCompare();
  absl::StatusOr<ExpressionPtr> ParseUnary(bool with_filters);
  absl::StatusOr<ExpressionPtr> ParsePrimary();
  absl::StatusOr<ExpressionPtr> ParseLiteral();
  absl::StatusOr<ExpressionPtr> ParseParenthesis();
  absl::StatusOr<ExpressionPtr> ParseListDisplay();
  absl::StatusOr<ExpressionPtr> ParseDictDisplay();
  absl::StatusOr<ExpressionPtr> ParsePostfix(ExpressionPtr value);
  absl::StatusOr<ExpressionPtr> ParseSubscript(ExpressionPtr value);
  absl::StatusOr<ExpressionPtr> ParseFiltersAndTests(ExpressionPtr value);
  absl::StatusOr<ExpressionPtr> ParseFilter(ExpressionPtr value);
  absl::StatusOr<ExpressionPtr> ParseTest(ExpressionPtr value);
  absl::Status ParseArguments(Expression* call);
  // Takes the children in and checks the depth of the tree.
  absl::StatusOr<ExpressionPtr> Finish(ExpressionPtr node);
  ExpressionPtr Make(ExpressionKind kind, ExpressionPtr child = nullptr);

  TokenStream* tokens_;
  int nesting_ = 0;
};

}  // namespace cadre::jinja
