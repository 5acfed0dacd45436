#include <algorithm>
#include <cmath>

#include "model/jinja_eval.h"

namespace cadre::jinja {
namespace {

constexpr int kMaxContainerDepth = 100;

const Value* FindBuiltin(std::string_view name) {
  static const std::pair<std::string_view, Value> kBuiltins[] = {
      {"range", Value::Of(Builtin::kRange)},
      {"namespace", Value::Of(Builtin::kNamespace)},
      {"dict", Value::Of(Builtin::kDict)},
      {"raise_exception", Value::Of(Builtin::kRaiseException)},
      {"strftime_now", Value::Of(Builtin::kStrftimeNow)}};
  for (const auto& [key, value] : kBuiltins) {
    if (key == name) return &value;
  }
  return nullptr;
}

// How an error names a value: the variable or attribute it was read from.
std::string Describe(const Expression& e) {
  if (e.kind == ExpressionKind::kName) return "'" + e.text.substr(0, 60) + "'";
  if (e.kind == ExpressionKind::kAttribute) return "'." + e.text.substr(0, 60) + "'";
  if (e.kind == ExpressionKind::kItem) {
    const Text* key = e.children[1]->literal.as_text();
    if (key) return "'" + key->bytes().substr(0, 60) + "'";
  }
  return "a value";
}

absl::Status Overflow() { return InvalidArgument("an integer does not fit 64 bits"); }

absl::StatusOr<Value> IntegerArithmetic(char op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == '+')
    return __builtin_add_overflow(a, b, &result) ? Overflow()
                                                 : absl::StatusOr<Value>(Value::Of(result));
  if (op == '-')
    return __builtin_sub_overflow(a, b, &result) ? Overflow()
                                                 : absl::StatusOr<Value>(Value::Of(result));
  if (op == '*')
    return __builtin_mul_overflow(a, b, &result) ? Overflow()
                                                 : absl::StatusOr<Value>(Value::Of(result));
  if (b == 0) return InvalidArgument("division by zero");
  if (b == -1) return op == '%' ? Value::Of(int64_t{0}) : IntegerArithmetic('-', 0, a);
  // Python rounds towards minus infinity.
  int64_t remainder = a % b;
  bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
  if (op == '%') return Value::Of(adjust ? remainder + b : remainder);
  return Value::Of(a / b - (adjust ? 1 : 0));
}

absl::StatusOr<Value> FloatArithmetic(char op, double a, double b) {
  if (op == '+') return Value::Of(a + b);
  if (op == '-') return Value::Of(a - b);
  if (op == '*') return Value::Of(a * b);
  if (b == 0) return InvalidArgument("division by zero");
  if (op == '/') return Value::Of(a / b);
  double floor = std::floor(a / b);
  return Value::Of(op == '%' ? a - floor * b : floor);
}

}  // namespace

const Value* Evaluator::Lookup(std::string_view name) const {
  for (const Scope* scope = scope_; scope; scope = scope->parent) {
    if (const Value* value = scope->Find(name)) return value;
  }
  return FindBuiltin(name);
}

absl::StatusOr<Value> Evaluator::Eval(const Expression& e) {
  Deeper deeper(&depth_);
  if (depth_ > budget_.limits().max_depth) {
    return InvalidArgument("nested more than {} deep", budget_.limits().max_depth);
  }
  CADRE_RETURN_IF_ERROR(budget_.Steps(1));
  return EvalAt(e);
}

absl::StatusOr<Value> Evaluator::EvalAt(const Expression& e) {
  switch (e.kind) {
    case ExpressionKind::kLiteral:
      return e.literal;
    case ExpressionKind::kName:
      return Name(e);
    case ExpressionKind::kList:
      return ListDisplay(e);
    case ExpressionKind::kDict:
      return DictDisplay(e);
    case ExpressionKind::kAttribute:
      return AttributeOf(e);
    case ExpressionKind::kSlice:
      return Slice(e);
    case ExpressionKind::kCall:
      return Call(e);
    case ExpressionKind::kBinary:
      return Binary(e);
    case ExpressionKind::kCompare:
      return CompareChain(e);
    case ExpressionKind::kItem: {
      CADRE_ASSIGN_OR_RETURN(Value object, Object(e));
      CADRE_ASSIGN_OR_RETURN(Value key, Eval(*e.children[1]));
      if (const Text* text = object.as_text()) {
        CADRE_RETURN_IF_ERROR(budget_.Bytes(static_cast<int64_t>(text->size() * sizeof(size_t))));
      }
      if (key.as_text()) CADRE_RETURN_IF_ERROR(budget_.Read(key.as_text()->size()));
      return GetItem(object, key);
    }
    case ExpressionKind::kFilter: {
      CADRE_ASSIGN_OR_RETURN(Value input, Eval(*e.children[0]));
      CADRE_ASSIGN_OR_RETURN(Arguments args, EvalArguments(e));
      return ApplyFilter(e.text, input, args, &budget_);
    }
    case ExpressionKind::kTest: {
      CADRE_ASSIGN_OR_RETURN(Value input, Eval(*e.children[0]));
      CADRE_ASSIGN_OR_RETURN(Arguments args, EvalArguments(e));
      CADRE_ASSIGN_OR_RETURN(bool holds, ApplyTest(e.text, input, args, &budget_));
      return Value::Of(holds);
    }
    case ExpressionKind::kNot: {
      CADRE_ASSIGN_OR_RETURN(Value operand, Eval(*e.children[0]));
      return Value::Of(!operand.Truthy());
    }
    case ExpressionKind::kNegate: {
      CADRE_ASSIGN_OR_RETURN(Value operand, Eval(*e.children[0]));
      int64_t integer = 0;
      if (operand.ToInt(&integer)) return IntegerArithmetic('-', 0, integer);
      if (operand.as_float()) return Value::Of(-*operand.as_float());
      return InvalidArgument("'-' takes a number, got {}", operand.TypeName());
    }
    case ExpressionKind::kAnd:
    case ExpressionKind::kOr: {
      CADRE_ASSIGN_OR_RETURN(Value left, Eval(*e.children[0]));
      bool decided = left.Truthy() == (e.kind == ExpressionKind::kOr);
      return decided ? left : Eval(*e.children[1]);
    }
    case ExpressionKind::kConditional: {
      CADRE_ASSIGN_OR_RETURN(Value condition, Eval(*e.children[1]));
      if (condition.Truthy()) return Eval(*e.children[0]);
      return e.children[2] ? Eval(*e.children[2]) : Value();
    }
  }
  return Internal("an unknown kind of expression");
}

absl::StatusOr<Value> Evaluator::Name(const Expression& e) {
  const Value* value = Lookup(e.text);
  return value ? *value : Value();
}

absl::StatusOr<Value> Evaluator::CheckDepth(Value value) const {
  if (value.depth() <= kMaxContainerDepth) return value;
  return InvalidArgument("lists nested more than {} deep", kMaxContainerDepth);
}

absl::StatusOr<Value> Evaluator::ListDisplay(const Expression& e) {
  std::vector<Value> items;
  for (const auto& child : e.children) {
    CADRE_ASSIGN_OR_RETURN(Value item, Eval(*child));
    items.push_back(std::move(item));
  }
  return CheckDepth(Value::Of(std::move(items)));
}

absl::StatusOr<Value> Evaluator::DictDisplay(const Expression& e) {
  Dict dict;
  for (size_t i = 0; i + 1 < e.children.size(); i += 2) {
    CADRE_ASSIGN_OR_RETURN(Value key, Eval(*e.children[i]));
    CADRE_ASSIGN_OR_RETURN(Value item, Eval(*e.children[i + 1]));
    if (!key.as_text()) {
      return InvalidArgument("a dict's key must be a str here, got {}", key.TypeName());
    }
    dict.Set(*key.as_text(), std::move(item));
  }
  return CheckDepth(Value::Of(std::move(dict)));
}

absl::StatusOr<Value> Evaluator::Object(const Expression& e) {
  CADRE_ASSIGN_OR_RETURN(Value object, Eval(*e.children[0]));
  if (object.is_undefined()) return InvalidArgument("{} is undefined", Describe(*e.children[0]));
  return object;
}

absl::StatusOr<Value> Evaluator::AttributeOf(const Expression& e) {
  CADRE_ASSIGN_OR_RETURN(Value object, Object(e));
  if (object.as_namespace()) {
    const Value* value = namespaces_[object.as_namespace()->index].Find(e.text);
    return value ? *value : Value();
  }
  return GetAttribute(object, e.text);
}

absl::StatusOr<Value> Evaluator::Slice(const Expression& e) {
  CADRE_ASSIGN_OR_RETURN(Value object, Object(e));
  int64_t bounds[3] = {0, 0, 1};
  bool given[3] = {};
  for (size_t i = 0; i < 3; ++i) {
    if (!e.children[i + 1]) continue;
    CADRE_ASSIGN_OR_RETURN(Value bound, Eval(*e.children[i + 1]));
    if (bound.is_none()) continue;
    if (!bound.ToInt(&bounds[i])) {
      return InvalidArgument("a slice takes ints, got {}", bound.TypeName());
    }
    given[i] = true;
  }
  bool is_text = object.as_text() != nullptr;
  if (!is_text && !object.as_list()) {
    return InvalidArgument("{} cannot be sliced", object.TypeName());
  }
  int64_t step = bounds[2];
  if (step == 0) return InvalidArgument("a slice's step is 0");
  // A string's elements cost one slot each; stepping over them piece by piece keeps origins.
  CADRE_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(object, &budget_));
  auto size = static_cast<int64_t>(items.size());
  int64_t low = step > 0 ? 0 : -1;
  int64_t high = step > 0 ? size : size - 1;
  auto place = [&](int64_t bound) {
    return std::clamp(bound < 0 ? bound + size : bound, low, high);
  };
  int64_t begin = given[0] ? place(bounds[0]) : (step > 0 ? 0 : size - 1);
  int64_t end = given[1] ? place(bounds[1]) : (step > 0 ? size : -1);
  step = std::clamp(step, -size - 1, size + 1);
  std::vector<Value> kept;
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
    kept.push_back(items[static_cast<size_t>(i)]);
  }
  if (!is_text) return Value::Of(std::move(kept));
  Text text;
  for (const Value& item : kept) text.Append(*item.as_text());
  return Value::Of(std::move(text));
}

absl::StatusOr<Arguments> Evaluator::EvalArguments(const Expression& e) {
  Arguments args;
  for (const auto& argument : e.positional) {
    CADRE_ASSIGN_OR_RETURN(Value value, Eval(*argument));
    args.positional.push_back(std::move(value));
  }
  for (const auto& [name, argument] : e.named) {
    CADRE_ASSIGN_OR_RETURN(Value value, Eval(*argument));
    args.named.emplace_back(name, std::move(value));
  }
  return args;
}

absl::StatusOr<Value> Evaluator::Call(const Expression& e) {
  const Expression& callee = *e.children[0];
  if (callee.kind == ExpressionKind::kAttribute) {
    CADRE_ASSIGN_OR_RETURN(Value object, Object(callee));
    CADRE_ASSIGN_OR_RETURN(Arguments args, EvalArguments(e));
    if (callee.text.starts_with("__")) {
      return InvalidArgument("the attribute '{}' is not allowed", callee.text.substr(0, 40));
    }
    return CallMethod(object, callee.text, args, &budget_);
  }
  CADRE_ASSIGN_OR_RETURN(Value function, Eval(callee));
  CADRE_ASSIGN_OR_RETURN(Arguments args, EvalArguments(e));
  if (const Value::Macro* macro = function.as_macro()) return CallMacro(*macro->definition, args);
  if (const Builtin* builtin = function.as_builtin()) {
    if (*builtin == Builtin::kNamespace) return NewNamespace(args);
    CADRE_ASSIGN_OR_RETURN(Value result, CallFunction(*builtin, args, now_, &budget_));
    return CheckDepth(std::move(result));
  }
  return InvalidArgument("{} is {}, not a function", Describe(callee), function.TypeName());
}

absl::StatusOr<Value> Evaluator::NewNamespace(const Arguments& args) {
  CADRE_RETURN_IF_ERROR(budget_.Bytes(256));
  Scope scope;
  for (const Value& value : args.positional) {
    if (!value.as_dict()) return InvalidArgument("namespace takes dicts and named values");
    for (const auto& [key, item] : value.as_dict()->items()) scope.Set(key.bytes(), item);
  }
  for (const auto& [name, value] : args.named) scope.Set(name, value);
  namespaces_.push_back(std::move(scope));
  return Value::Of(Value::Namespace{namespaces_.size() - 1});
}

absl::StatusOr<Value> Evaluator::CallMacro(const Statement& macro, const Arguments& args) {
  if (args.positional.size() > macro.parameters.size()) {
    return InvalidArgument("{} takes {} arguments, got {}", macro.name, macro.parameters.size(),
                           args.positional.size());
  }
  for (const auto& argument : args.named) {
    bool known = std::any_of(macro.parameters.begin(), macro.parameters.end(),
                             [&](const Parameter& p) { return p.name == argument.first; });
    if (!known) return InvalidArgument("{} has no argument '{}'", macro.name, argument.first);
  }
  // A macro sees the template's own variables, not those of the place that calls it.
  Scope scope{.parent = &root_, .variables = {}};
  Entered entered(this, &scope);
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    const Value* given = args.Get(i, parameter.name);
    Value value = given ? *given : Value();
    if (!given && parameter.fallback) {
      CADRE_ASSIGN_OR_RETURN(value, Eval(*parameter.fallback));
    }
    scope.Set(parameter.name, std::move(value));
  }
  Text text;
  CADRE_RETURN_IF_ERROR(Exec(macro.body, &text).status());
  return Value::Of(std::move(text));
}

absl::StatusOr<Value> Evaluator::Add(const Value& a, const Value& b) {
  if (a.as_text() && b.as_text()) {
    CADRE_RETURN_IF_ERROR(
        budget_.Bytes(static_cast<int64_t>(a.as_text()->size() + b.as_text()->size())));
    Text text = *a.as_text();
    text.Append(*b.as_text());
    return Value::Of(std::move(text));
  }
  CADRE_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(a, &budget_));
  CADRE_ASSIGN_OR_RETURN(std::vector<Value> more, Iterate(b, &budget_));
  items.insert(items.end(), more.begin(), more.end());
  return Value::Of(std::move(items));
}

absl::StatusOr<Value> Evaluator::Repeat(const Text& text, int64_t count) {
  count = text.empty() ? 0 : std::max<int64_t>(count, 0);
  if (count > budget_.limits().max_bytes) return InvalidArgument("a string times {}", count);
  int64_t size = 0;
  if (__builtin_mul_overflow(count, static_cast<int64_t>(text.size()), &size)) return Overflow();
  CADRE_RETURN_IF_ERROR(budget_.Bytes(size));
  Text result;
  for (int64_t i = 0; i < count; ++i) result.Append(text);
  return Value::Of(std::move(result));
}

absl::StatusOr<Value> Evaluator::Binary(const Expression& e) {
  CADRE_ASSIGN_OR_RETURN(Value a, Eval(*e.children[0]));
  CADRE_ASSIGN_OR_RETURN(Value b, Eval(*e.children[1]));
  if (e.text == "~") {
    CADRE_ASSIGN_OR_RETURN(Text left, ToText(a, &budget_));
    CADRE_ASSIGN_OR_RETURN(Text right, ToText(b, &budget_));
    return Add(Value::Of(std::move(left)), Value::Of(std::move(right)));
  }
  char op = e.text == "//" ? 'f' : e.text[0];
  if (op == '+' && ((a.as_text() && b.as_text()) || (a.as_list() && b.as_list()))) {
    return Add(a, b);
  }
  int64_t i = 0, j = 0;
  double x = 0, y = 0;
  if (op == '*' && a.as_text() && b.ToInt(&j)) return Repeat(*a.as_text(), j);
  if (op == '*' && b.as_text() && a.ToInt(&i)) return Repeat(*b.as_text(), i);
  if (op != '/' && a.ToInt(&i) && b.ToInt(&j)) return IntegerArithmetic(op, i, j);
  if (a.ToDouble(&x) && b.ToDouble(&y)) return FloatArithmetic(op, x, y);
  for (size_t side = 0; side < 2; ++side) {
    if ((side == 0 ? a : b).is_undefined()) {
      return InvalidArgument("{} is undefined", Describe(*e.children[side]));
    }
  }
  return InvalidArgument("'{}' does not take {} and {}", e.text, a.TypeName(), b.TypeName());
}

absl::StatusOr<bool> Evaluator::CompareOne(const std::string& op, const Value& a, const Value& b) {
  if (op == "in" || op == "not in") {
    CADRE_ASSIGN_OR_RETURN(bool inside, Contains(b, a, &budget_));
    return inside == (op == "in");
  }
  if (op == "==" || op == "!=") {
    CADRE_ASSIGN_OR_RETURN(bool equal, Equal(a, b, &budget_));
    return equal == (op == "==");
  }
  CADRE_ASSIGN_OR_RETURN(int order, Compare(a, b, &budget_));
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  return op == ">" ? order > 0 : order >= 0;
}

absl::StatusOr<Value> Evaluator::CompareChain(const Expression& e) {
  CADRE_ASSIGN_OR_RETURN(Value left, Eval(*e.children[0]));
  for (size_t i = 0; i < e.operators.size(); ++i) {
    CADRE_ASSIGN_OR_RETURN(Value right, Eval(*e.children[i + 1]));
    CADRE_ASSIGN_OR_RETURN(bool holds, CompareOne(e.operators[i], left, right));
    if (!holds) return Value::Of(false);
    left = std::move(right);
  }
  return Value::Of(true);
}

}  // namespace cadre::jinja
