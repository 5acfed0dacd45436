// The syntax tree of a template. One struct per expression and statement with a kind: the language
// is small, and the evaluator is one switch over it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja_value.h"

namespace cadre::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind {
  kLiteral,
  kName,        // text
  kList,        // children; a tuple is one too
  kDict,        // children: key, value, key, value, ...
  kAttribute,   // child 0 . text
  kItem,        // child 0 [ child 1 ]
  kSlice,       // child 0 [ child 1 : child 2 : child 3 ], absent ones null
  kCall,        // child 0 ( arguments )
  kFilter,      // child 0 | text ( arguments )
  kTest,        // child 0 is text ( arguments )
  kNot,         // child 0
  kNegate,      // - child 0
  kAnd,         // child 0, child 1
  kOr,          // child 0, child 1
  kBinary,      // child 0 text child 1, text one of + - * / // % ~
  kCompare,     // child 0 operators[0] child 1 operators[1] child 2 ...
  kConditional  // child 0 if child 1 else child 2 (null: undefined)
};

struct Expression {
  ExpressionKind kind = ExpressionKind::kLiteral;
  int line = 1;
  int depth = 1;  // of the tree below; bounded, so that walking it is
  std::string text;
  Value literal;
  std::vector<ExpressionPtr> children;
  // Arguments of kCall, kFilter and kTest.
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  std::vector<std::string> operators;
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

enum class StatementKind {
  kData,      // data
  kPrint,     // expression
  kIf,        // branches, otherwise
  kFor,       // targets in expression if condition: body, else otherwise
  kSet,       // targets = expression
  kSetBlock,  // targets[0] = body, through the filters of expression
  kMacro,     // name(parameters): body
  kFilter,    // body through the filters of expression
  kScope,     // body ({% generation %})
  kBreak,
  kContinue,
};

// What a set or for assigns: a name, or `name.attribute` of a namespace.
struct Target {
  std::string name;
  std::string attribute;
};

struct Parameter {
  std::string name;
  ExpressionPtr fallback;  // null: undefined when not given
};

struct Branch {
  ExpressionPtr condition;
  Body body;
};

struct Statement {
  StatementKind kind = StatementKind::kData;
  int line = 1;
  Text data;
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<Target> targets;
  std::string name;
  std::vector<Parameter> parameters;
  std::vector<Branch> branches;
  Body body;
  Body otherwise;
};

}  // namespace cadre::jinja
