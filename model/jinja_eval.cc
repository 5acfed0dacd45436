#include "model/jinja_eval.h"

namespace cadre::jinja {

void Evaluator::Scope::Set(const std::string& name, Value value) {
  for (auto& [key, current] : variables) {
    if (key == name) {
      current = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

const Value* Evaluator::Scope::Find(std::string_view name) const {
  for (const auto& [key, value] : variables) {
    if (key == name) return &value;
  }
  return nullptr;
}

Evaluator::Evaluator(Dict globals, const Limits& limits, int64_t now) : budget_(limits), now_(now) {
  for (const auto& [name, value] : globals.items()) {
    root_.variables.emplace_back(name.bytes(), value);
  }
}

absl::StatusOr<Text> Evaluator::Run(const Body& body) {
  Text out;
  CADRE_RETURN_IF_ERROR(Exec(body, &out).status());
  return out;
}

absl::Status Evaluator::Emit(const Text& text, Text* out) {
  CADRE_RETURN_IF_ERROR(budget_.Bytes(static_cast<int64_t>(text.size())));
  out->Append(text);
  if (static_cast<int64_t>(out->size()) <= budget_.limits().max_output) return absl::OkStatus();
  return InvalidArgument("more than {} bytes of output", budget_.limits().max_output);
}

absl::StatusOr<Evaluator::Flow> Evaluator::Exec(const Body& body, Text* out) {
  Deeper deeper(&depth_);
  if (depth_ > budget_.limits().max_depth) {
    return InvalidArgument("nested more than {} deep", budget_.limits().max_depth);
  }
  for (const auto& statement : body) {
    absl::StatusOr<Flow> flow = ExecOne(*statement, out);
    if (!flow.ok() && !located_) {
      located_ = true;
      return Annotate(flow.status(), fmt::format("line {}", statement->line));
    }
    if (!flow.ok() || *flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecOne(const Statement& statement, Text* out) {
  CADRE_RETURN_IF_ERROR(budget_.Steps(1));
  switch (statement.kind) {
    case StatementKind::kData:
      CADRE_RETURN_IF_ERROR(Emit(statement.data, out));
      return Flow::kNext;
    case StatementKind::kPrint: {
      CADRE_ASSIGN_OR_RETURN(Value value, Eval(*statement.expression));
      CADRE_ASSIGN_OR_RETURN(Text text, ToText(value, &budget_));
      CADRE_RETURN_IF_ERROR(Emit(text, out));
      return Flow::kNext;
    }
    case StatementKind::kIf:
      return ExecIf(statement, out);
    case StatementKind::kFor:
      return ExecFor(statement, out);
    case StatementKind::kSet: {
      CADRE_ASSIGN_OR_RETURN(Value value, Eval(*statement.expression));
      CADRE_RETURN_IF_ERROR(Assign(statement.targets, value));
      return Flow::kNext;
    }
    case StatementKind::kSetBlock: {
      CADRE_ASSIGN_OR_RETURN(Value value, Capture(statement));
      CADRE_RETURN_IF_ERROR(Assign(statement.targets, value));
      return Flow::kNext;
    }
    case StatementKind::kFilter: {
      CADRE_ASSIGN_OR_RETURN(Value value, Capture(statement));
      CADRE_ASSIGN_OR_RETURN(Text text, ToText(value, &budget_));
      CADRE_RETURN_IF_ERROR(Emit(text, out));
      return Flow::kNext;
    }
    case StatementKind::kMacro:
      scope_->Set(statement.name, Value::Of(Value::Macro{&statement}));
      return Flow::kNext;
    case StatementKind::kScope:
      return Exec(statement.body, out);
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Internal("an unknown kind of statement");
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecIf(const Statement& statement, Text* out) {
  for (const Branch& branch : statement.branches) {
    CADRE_ASSIGN_OR_RETURN(Value condition, Eval(*branch.condition));
    if (condition.Truthy()) return Exec(branch.body, out);
  }
  return Exec(statement.otherwise, out);
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecFor(const Statement& statement, Text* out) {
  CADRE_ASSIGN_OR_RETURN(Value iterable, Eval(*statement.expression));
  CADRE_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(iterable, &budget_));
  if (statement.condition) {
    std::vector<Value> kept;
    for (Value& item : items) {
      Scope scope{.parent = scope_, .variables = {}};
      Entered entered(this, &scope);
      CADRE_RETURN_IF_ERROR(Assign(statement.targets, item));
      CADRE_ASSIGN_OR_RETURN(Value condition, Eval(*statement.condition));
      if (condition.Truthy()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) return Exec(statement.otherwise, out);
  auto list = std::make_shared<const List>(List{.items = std::move(items)});
  for (size_t i = 0; i < list->items.size(); ++i) {
    Scope scope{.parent = scope_, .variables = {}};
    Entered entered(this, &scope);
    scope.Set("loop",
              Value::Of(std::make_shared<const LoopState>(LoopState{.list = list, .index = i})));
    CADRE_RETURN_IF_ERROR(Assign(statement.targets, list->items[i]));
    CADRE_ASSIGN_OR_RETURN(Flow flow, Exec(statement.body, out));
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNext;
}

absl::Status Evaluator::Assign(const std::vector<Target>& targets, const Value& value) {
  if (targets.size() == 1) return AssignOne(targets[0], value);
  CADRE_ASSIGN_OR_RETURN(std::vector<Value> parts, Iterate(value, &budget_));
  if (parts.size() != targets.size()) {
    return InvalidArgument("{} values for {} names", parts.size(), targets.size());
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    CADRE_RETURN_IF_ERROR(AssignOne(targets[i], parts[i]));
  }
  return absl::OkStatus();
}

absl::Status Evaluator::AssignOne(const Target& target, const Value& value) {
  if (target.attribute.empty()) {
    scope_->Set(target.name, value);
    return absl::OkStatus();
  }
  const Value* object = Lookup(target.name);
  if (!object || !object->as_namespace()) {
    return InvalidArgument("'{}' is no namespace: its attributes cannot be set", target.name);
  }
  namespaces_[object->as_namespace()->index].Set(target.attribute, value);
  return absl::OkStatus();
}

absl::StatusOr<Value> Evaluator::Capture(const Statement& statement) {
  Scope scope{.parent = scope_, .variables = {}};
  Entered entered(this, &scope);
  Text text;
  CADRE_RETURN_IF_ERROR(Exec(statement.body, &text).status());
  Value value = Value::Of(std::move(text));
  if (!statement.expression) return value;
  // The parser wrote the filters' input as the variable without a name.
  scope.Set("", value);
  return Eval(*statement.expression);
}

}  // namespace cadre::jinja
