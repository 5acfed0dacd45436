// Runs a template's syntax tree over values, within limits on steps, memory, output and depth.
//
// An Evaluator is for one rendering on one thread; the tree it walks may be shared by any number.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/jinja_ast.h"
#include "model/jinja_builtins.h"

namespace cadre::jinja {

class Evaluator {
 public:
  // `globals` are the names that the template sees; `now` is what strftime_now formats.
  Evaluator(Dict globals, const Limits& limits, int64_t now);

  // The rendered text. kInvalidArgument with the line for everything a template or a message can
  // do wrong, raise_exception included.
  absl::StatusOr<Text> Run(const Body& body);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  struct Scope {
    Scope* parent = nullptr;
    std::vector<std::pair<std::string, Value>> variables;
    void Set(const std::string& name, Value value);
    const Value* Find(std::string_view name) const;  // in this scope alone
  };
  // Makes a scope the current one until the end of a C++ block.
  class Entered;
  class Deeper;

  // Statements (jinja_eval.cc).
  absl::StatusOr<Flow> Exec(const Body& body, Text* out);
  absl::StatusOr<Flow> ExecOne(const Statement& statement, Text* out);
  absl::StatusOr<Flow> ExecIf(const Statement& statement, Text* out);
  absl::StatusOr<Flow> ExecFor(const Statement& statement, Text* out);
  absl::Status Assign(const std::vector<Target>& targets, const Value& value);
  absl::Status AssignOne(const Target& target, const Value& value);
  // The body's text, through the filters of `filters` (null: none), as a value.
  absl::StatusOr<Value> Capture(const Statement& statement);
  absl::Status Emit(const Text& text, Text* out);

  // Expressions (jinja_expression.cc).
  absl::StatusOr<Value> Eval(const Expression& e);
  absl::StatusOr<Value> EvalAt(const Expression& e);
  absl::StatusOr<Value> Name(const Expression& e);
  absl::StatusOr<Value> ListDisplay(const Expression& e);
  absl::StatusOr<Value> DictDisplay(const Expression& e);
  absl::StatusOr<Value> Object(const Expression& e);  // child 0, an error when undefined
  absl::StatusOr<Value> AttributeOf(const Expression& e);
  absl::StatusOr<Value> Slice(const Expression& e);
  absl::StatusOr<Value> Call(const Expression& e);
  absl::StatusOr<Value> CallMacro(const Statement& macro, const Arguments& args);
  absl::StatusOr<Value> NewNamespace(const Arguments& args);
  absl::StatusOr<Arguments> EvalArguments(const Expression& e);
  absl::StatusOr<Value> Binary(const Expression& e);
  absl::StatusOr<Value> Add(const Value& a, const Value& b);
  absl::StatusOr<Value> Repeat(const Text& text, int64_t count);
  absl::StatusOr<Value> CompareChain(const Expression& e);
  absl::StatusOr<bool> CompareOne(const std::string& op, const Value& a, const Value& b);
  absl::StatusOr<Value> CheckDepth(Value value) const;
  const Value* Lookup(std::string_view name) const;

  Budget budget_;
  int64_t now_;
  int depth_ = 0;
  bool located_ = false;  // the error under way names its line already
  Scope root_;
  Scope* scope_ = &root_;
  // Namespaces live here and values hold their index, so none can own itself.
  std::deque<Scope> namespaces_;
};

class Evaluator::Entered {
 public:
  Entered(Evaluator* evaluator, Scope* scope)
      : evaluator_(evaluator), before_(std::exchange(evaluator->scope_, scope)) {}
  ~Entered() { evaluator_->scope_ = before_; }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  Evaluator* evaluator_;
  Scope* before_;
};

class Evaluator::Deeper {
 public:
  explicit Deeper(int* depth) : depth_(depth) { ++*depth_; }
  ~Deeper() { --*depth_; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  int* depth_;
};

}  // namespace cadre::jinja
