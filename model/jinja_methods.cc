// Methods of strings and dicts, and the tests behind `is`.
#include <algorithm>

#include "model/jinja_builtins.h"

namespace cadre::jinja {
namespace {

using Result = absl::StatusOr<Value>;

absl::Status Charge(const Text& text, Budget* budget) {
  return budget->Bytes(static_cast<int64_t>(text.size()));
}

Result Done(Text text, Budget* budget) {
  CADRE_RETURN_IF_ERROR(Charge(text, budget));
  return Value::Of(std::move(text));
}

Result StripMethod(const Text& text, Side side, const Arguments& args, Budget* budget) {
  const Value* chars = args.Get(0, "chars");
  if (!chars || chars->is_none()) {
    CADRE_RETURN_IF_ERROR(budget->Read(text.size()));
    return Done(Strip(text, side, std::nullopt), budget);
  }
  CADRE_ASSIGN_OR_RETURN(const Text* set, args.String(0, "chars"));
  CADRE_RETURN_IF_ERROR(budget->Search(text.size(), set->size()));
  return Done(Strip(text, side, set->view()), budget);
}

// Python's startswith and endswith, with one string or several.
Result Affix(const Text& text, bool start, const Arguments& args, Budget* budget) {
  const Value* wanted = args.Get(0, "prefix");
  std::vector<Value> choices;
  if (wanted && wanted->as_list()) {
    choices = *wanted->as_list();
  } else {
    CADRE_RETURN_IF_ERROR(args.String(0, "prefix").status());
    choices.push_back(*wanted);
  }
  CADRE_RETURN_IF_ERROR(budget->Steps(static_cast<int64_t>(choices.size())));
  for (const Value& choice : choices) {
    if (!choice.as_text()) return InvalidArgument("a prefix must be a str");
    std::string_view affix = choice.as_text()->view();
    CADRE_RETURN_IF_ERROR(budget->Read(std::min(affix.size(), text.size())));
    if (start ? text.view().starts_with(affix) : text.view().ends_with(affix)) {
      return Value::Of(true);
    }
  }
  return Value::Of(false);
}

Result SplitMethod(const Text& text, bool from_right, const Arguments& args, Budget* budget) {
  SplitOptions options{.from_right = from_right};
  const Value* separator = args.Get(0, "sep");
  if (separator && !separator->is_none()) {
    CADRE_ASSIGN_OR_RETURN(const Text* wanted, args.String(0, "sep"));
    if (wanted->empty()) return InvalidArgument("split: the separator is empty");
    options.separator = wanted->view();
    CADRE_RETURN_IF_ERROR(budget->Search(text.size(), wanted->size()));
  }
  CADRE_ASSIGN_OR_RETURN(options.limit, args.Int(1, "maxsplit", -1));
  CADRE_RETURN_IF_ERROR(budget->Steps(static_cast<int64_t>(text.size() / 16)));
  std::vector<Value> parts;
  for (Text& part : Split(text, options)) parts.push_back(Value::Of(std::move(part)));
  CADRE_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(text.size() + parts.size() * 64)));
  return Value::Of(std::move(parts));
}

Result ReplaceMethod(const Text& text, const Arguments& args, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(const Text* from, args.String(0, "old"));
  CADRE_ASSIGN_OR_RETURN(const Text* to, args.String(1, "new"));
  CADRE_ASSIGN_OR_RETURN(int64_t count, args.Int(2, "count", -1));
  if (from->empty()) return InvalidArgument("replace: what to replace is empty");
  CADRE_RETURN_IF_ERROR(budget->Search(text.size(), from->size()));
  size_t places = CountOccurrences(text.view(), from->view());
  double added = static_cast<double>(places) * static_cast<double>(to->size());
  if (added > 1e9) return InvalidArgument("replace: the result would have {:.0f} bytes", added);
  CADRE_RETURN_IF_ERROR(budget->Steps(static_cast<int64_t>(places)));
  CADRE_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(added) + int64_t(text.size())));
  return Value::Of(Replace(text, from->view(), *to, count));
}

Result FindMethod(const Text& text, bool from_right, const Arguments& args, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(const Text* needle, args.String(0, "sub"));
  CADRE_RETURN_IF_ERROR(budget->Search(text.size(), needle->size()));
  size_t at = from_right ? text.view().rfind(needle->view()) : text.view().find(needle->view());
  if (at == std::string_view::npos) return Value::Of(int64_t{-1});
  return Value::Of(static_cast<int64_t>(CountCodePoints(text.view().substr(0, at))));
}

Result RemoveAffix(const Text& text, bool prefix, const Arguments& args, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(const Text* affix, args.String(0, prefix ? "prefix" : "suffix"));
  size_t size = text.size();
  CADRE_RETURN_IF_ERROR(budget->Read(std::min(affix->size(), size)));
  if (prefix && text.view().starts_with(affix->view())) {
    return Done(text.Slice(affix->size(), size), budget);
  }
  if (!prefix && text.view().ends_with(affix->view())) {
    return Done(text.Slice(0, size - affix->size()), budget);
  }
  return Done(text, budget);
}

bool AllCodePoints(std::string_view text, bool (*holds)(char32_t)) {
  for (size_t pos = 0; pos < text.size();) {
    if (!holds(NextCodePoint(text, &pos))) return false;
  }
  return !text.empty();
}

Result StringMethod(const Text& text, std::string_view method, const Arguments& args,
                    Budget* budget) {
  if (method == "strip") return StripMethod(text, Side::kBoth, args, budget);
  if (method == "lstrip") return StripMethod(text, Side::kLeft, args, budget);
  if (method == "rstrip") return StripMethod(text, Side::kRight, args, budget);
  if (method == "startswith") return Affix(text, true, args, budget);
  if (method == "endswith") return Affix(text, false, args, budget);
  if (method == "split") return SplitMethod(text, false, args, budget);
  if (method == "rsplit") return SplitMethod(text, true, args, budget);
  if (method == "replace") return ReplaceMethod(text, args, budget);
  if (method == "find") return FindMethod(text, false, args, budget);
  if (method == "rfind") return FindMethod(text, true, args, budget);
  if (method == "removeprefix") return RemoveAffix(text, true, args, budget);
  if (method == "removesuffix") return RemoveAffix(text, false, args, budget);
  if (method == "upper") return Done(ChangeCase(text, Case::kUpper), budget);
  if (method == "lower") return Done(ChangeCase(text, Case::kLower), budget);
  if (method == "title") return Done(ChangeCase(text, Case::kTitle), budget);
  if (method == "capitalize") return Done(ChangeCase(text, Case::kCapitalize), budget);
  if (method == "isspace" || method == "isdigit" || method == "splitlines") {
    CADRE_RETURN_IF_ERROR(budget->Read(text.size()));
  }
  if (method == "isspace") return Value::Of(AllCodePoints(text.view(), IsSpace));
  if (method == "isdigit") {
    return Value::Of(AllCodePoints(text.view(), [](char32_t c) { return c >= '0' && c <= '9'; }));
  }
  if (method == "splitlines") {
    std::vector<Value> lines;
    for (Text& line : SplitLines(text)) lines.push_back(Value::Of(std::move(line)));
    CADRE_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(text.size() + lines.size() * 64)));
    return Value::Of(std::move(lines));
  }
  if (method == "count") {
    CADRE_ASSIGN_OR_RETURN(const Text* needle, args.String(0, "sub"));
    CADRE_RETURN_IF_ERROR(budget->Search(text.size(), needle->size()));
    return Value::Of(static_cast<int64_t>(CountOccurrences(text.view(), needle->view())));
  }
  if (method == "join") {
    Arguments join{.positional = {Value::Of(text)}};
    if (args.positional.size() != 1) return InvalidArgument("join takes one list");
    return ApplyFilter("join", args.positional[0], join, budget);
  }
  return InvalidArgument("str has no method '{}' here", method.substr(0, 40));
}

Result DictMethod(const Value& object, std::string_view method, const Arguments& args,
                  Budget* budget) {
  const Dict& dict = *object.as_dict();
  if (method == "items") return ApplyFilter("items", object, {}, budget);
  if (method == "keys") return ApplyFilter("list", object, {}, budget);
  if (method == "copy") return object;
  if (method == "values") {
    CADRE_RETURN_IF_ERROR(budget->Steps(static_cast<int64_t>(dict.items().size())));
    std::vector<Value> values;
    for (const auto& entry : dict.items()) values.push_back(entry.second);
    return Value::Of(std::move(values));
  }
  if (method == "get") {
    const Value* key = args.Get(0, "key");
    if (key && key->as_text()) CADRE_RETURN_IF_ERROR(budget->Read(key->as_text()->size()));
    const Value* found = key && key->as_text() ? dict.Find(key->as_text()->view()) : nullptr;
    if (found) return *found;
    const Value* fallback = args.Get(1, "default");
    return fallback ? *fallback : Value::OfNone();
  }
  return InvalidArgument("dict has no method '{}' here", method.substr(0, 40));
}

}  // namespace

absl::StatusOr<Value> CallMethod(const Value& object, std::string_view method,
                                 const Arguments& args, Budget* budget) {
  if (const Text* text = object.as_text()) return StringMethod(*text, method, args, budget);
  if (object.as_dict()) return DictMethod(object, method, args, budget);
  if (auto* list = object.as_list(); list && (method == "index" || method == "count")) {
    int64_t count = 0;
    for (size_t i = 0; i < list->size() && args.positional.size() == 1; ++i) {
      CADRE_ASSIGN_OR_RETURN(bool equal, Equal((*list)[i], args.positional[0], budget));
      if (equal && method == "index") return Value::Of(static_cast<int64_t>(i));
      count += equal;
    }
    if (method == "count") return Value::Of(count);
    return InvalidArgument("index: the value is not in the list");
  }
  if (const LoopState* loop = object.as_loop(); loop && method == "cycle") {
    if (args.positional.empty()) return InvalidArgument("loop.cycle takes values");
    return args.positional[loop->index % args.positional.size()];
  }
  return InvalidArgument("{} has no method '{}' here", object.TypeName(), method.substr(0, 40));
}

namespace {

absl::StatusOr<bool> ComparisonTest(std::string_view name, const Value& a, const Value& b,
                                    Budget* budget) {
  if (name == "in") return Contains(b, a, budget);
  if (name == "eq" || name == "equalto" || name == "sameas") return Equal(a, b, budget);
  if (name == "ne") {
    CADRE_ASSIGN_OR_RETURN(bool equal, Equal(a, b, budget));
    return !equal;
  }
  if (name == "divisibleby") {
    int64_t x = 0, y = 0;
    if (!a.ToInt(&x) || !b.ToInt(&y) || y == 0) return InvalidArgument("divisibleby takes ints");
    return y == -1 || x % y == 0;
  }
  CADRE_ASSIGN_OR_RETURN(int order, Compare(a, b, budget));
  if (name == "lt" || name == "lessthan") return order < 0;
  if (name == "le") return order <= 0;
  if (name == "gt" || name == "greaterthan") return order > 0;
  return order >= 0;
}

bool HasCase(const Value& value, Case to) {
  const Text* text = value.as_text();
  return text && ChangeCase(*text, to).view() == text->view() &&
         ChangeCase(*text, to == Case::kUpper ? Case::kLower : Case::kUpper).view() != text->view();
}

}  // namespace

absl::StatusOr<bool> ApplyTest(std::string_view name, const Value& v, const Arguments& args,
                               Budget* budget) {
  if (name == "defined") return !v.is_undefined();
  if (name == "undefined") return v.is_undefined();
  if (name == "none") return v.is_none();
  if (name == "string") return v.as_text() != nullptr;
  if (name == "mapping") return v.as_dict() != nullptr;
  if (name == "iterable") return v.as_text() || v.as_list() || v.as_dict() || v.is_undefined();
  if (name == "sequence") return v.as_text() || v.as_list() || v.as_dict() || v.is_undefined();
  if (name == "number") return v.is_number();
  if (name == "integer") return v.as_int() != nullptr;
  if (name == "float") return v.as_float() != nullptr;
  if (name == "boolean") return v.as_bool() != nullptr;
  if (name == "true") return v.as_bool() && *v.as_bool();
  if (name == "false") return v.as_bool() && !*v.as_bool();
  if (name == "callable") return v.as_macro() || v.as_builtin();
  if (name == "lower" || name == "upper") {
    // Makes both cases of it.
    const size_t bytes = v.as_text() != nullptr ? 2 * v.as_text()->size() : 0;
    CADRE_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(bytes)));
    return HasCase(v, name == "lower" ? Case::kLower : Case::kUpper);
  }
  if (name == "odd" || name == "even") {
    int64_t number = 0;
    if (!v.ToInt(&number)) return InvalidArgument("'{}' takes an int, got {}", name, v.TypeName());
    return (number % 2 != 0) == (name == "odd");
  }
  for (std::string_view binary : {"in", "eq", "equalto", "sameas", "ne", "divisibleby", "lt",
                                  "lessthan", "le", "gt", "greaterthan", "ge"}) {
    if (name != binary) continue;
    if (args.positional.size() != 1) return InvalidArgument("the test '{}' takes one value", name);
    return ComparisonTest(name, v, args.positional[0], budget);
  }
  return InvalidArgument("no test named '{}'", name.substr(0, 40));
}

}  // namespace cadre::jinja
