#include <algorithm>
#include <charconv>
#include <cmath>

#include "model/jinja_builtins.h"

namespace cadre::jinja {
namespace {

using Result = absl::StatusOr<Value>;
using Items = std::vector<Value>;

absl::StatusOr<Value> Attribute(const Value& object, std::string_view path, Budget* budget) {
  Value value = object;
  CADRE_RETURN_IF_ERROR(budget->Read(path.size()));
  while (true) {
    size_t dot = path.find('.');
    std::string_view part = path.substr(0, dot);
    int64_t index = 0;
    auto parsed = std::from_chars(part.data(), part.data() + part.size(), index);
    bool number = parsed.ec == std::errc() && parsed.ptr == part.data() + part.size();
    Value key = number ? Value::Of(index) : Value::Of(Text(std::string(part), Origin::kUser));
    if (number && value.as_text()) {
      CADRE_RETURN_IF_ERROR(
          budget->Bytes(static_cast<int64_t>(value.as_text()->size() * sizeof(size_t))));
    }
    CADRE_ASSIGN_OR_RETURN(value, GetItem(value, key));
    if (dot == std::string_view::npos) return value;
    path = path.substr(dot + 1);
  }
}

// Method calls under a filter's name.
Result AsMethod(const Value& input, std::string_view method, const Arguments& args,
                Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Text text, ToText(input, budget));
  return CallMethod(Value::Of(std::move(text)), method, args, budget);
}

Result Trim(const Value& in, const Arguments& args, Budget* b) {
  return AsMethod(in, "strip", args, b);
}
Result Upper(const Value& in, const Arguments&, Budget* b) { return AsMethod(in, "upper", {}, b); }
Result Lower(const Value& in, const Arguments&, Budget* b) { return AsMethod(in, "lower", {}, b); }
Result Title(const Value& in, const Arguments&, Budget* b) { return AsMethod(in, "title", {}, b); }
Result Capitalize(const Value& in, const Arguments&, Budget* b) {
  return AsMethod(in, "capitalize", {}, b);
}
Result ReplaceFilter(const Value& in, const Arguments& args, Budget* b) {
  return AsMethod(in, "replace", args, b);
}

Result String(const Value& input, const Arguments&, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Text text, ToText(input, budget));
  return Value::Of(std::move(text));
}

Result ToJsonFilter(const Value& input, const Arguments& args, Budget* budget) {
  JsonStyle style;
  CADRE_ASSIGN_OR_RETURN(style.ensure_ascii, args.Bool(0, "ensure_ascii", false));
  CADRE_ASSIGN_OR_RETURN(style.indent, args.Int(1, "indent", -1));
  CADRE_ASSIGN_OR_RETURN(style.sort_keys, args.Bool(3, "sort_keys", false));
  const Value* separators = args.Get(2, "separators");
  if (separators && !separators->is_none()) {
    const Items* pair = separators->as_list();
    if (!pair || pair->size() != 2 || !(*pair)[0].as_text() || !(*pair)[1].as_text()) {
      return InvalidArgument("tojson: separators must be two strings");
    }
    style.item_separator = (*pair)[0].as_text()->bytes();
    style.key_separator = (*pair)[1].as_text()->bytes();
    if (style.item_separator.size() + style.key_separator.size() > 64) {
      return InvalidArgument("tojson: separators of more than 64 bytes");
    }
  }
  CADRE_ASSIGN_OR_RETURN(Text text, ToJson(input, style, budget));
  return Value::Of(std::move(text));
}

Result Join(const Value& input, const Arguments& args, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Items items, Iterate(input, budget));
  const Value* separator = args.Get(0, "d");
  const Value* attribute = args.Get(1, "attribute");
  Text between, result;
  if (separator) {
    CADRE_ASSIGN_OR_RETURN(between, ToText(*separator, budget));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (attribute && attribute->as_text()) {
      CADRE_ASSIGN_OR_RETURN(item, Attribute(item, attribute->as_text()->view(), budget));
    }
    CADRE_ASSIGN_OR_RETURN(Text text, ToText(item, budget));
    CADRE_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(between.size() + text.size())));
    if (i > 0) result.Append(between);
    result.Append(text);
  }
  return Value::Of(std::move(result));
}

Result Length(const Value& input, const Arguments&, Budget* budget) {
  size_t length = 0;
  if (const Text* text = input.as_text()) {
    CADRE_RETURN_IF_ERROR(budget->Read(text->size()));
    length = CountCodePoints(text->view());
  } else if (auto* list = input.as_list()) {
    length = list->size();
  } else if (const Dict* dict = input.as_dict()) {
    length = dict->items().size();
  } else if (!input.is_undefined()) {
    return InvalidArgument("{} has no length", input.TypeName());
  }
  return Value::Of(static_cast<int64_t>(length));
}

Result Default(const Value& input, const Arguments& args, Budget*) {
  CADRE_ASSIGN_OR_RETURN(bool falsy_too, args.Bool(1, "boolean", false));
  if (!input.is_undefined() && !(falsy_too && !input.Truthy())) return input;
  const Value* fallback = args.Get(0, "default_value");
  return fallback ? *fallback : Value::Of(Text());
}

// select, reject (of the element) and selectattr, rejectattr (of an attribute of it).
Result Choose(const Value& input, const Arguments& args, bool by_attribute, bool keep,
              Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Items items, Iterate(input, budget));
  size_t place = 0;
  std::string_view attribute;
  if (by_attribute) {
    CADRE_ASSIGN_OR_RETURN(const Text* name, args.String(place++, "attribute"));
    attribute = name->view();
  }
  std::string_view test;
  Arguments rest;
  if (place < args.positional.size()) {
    CADRE_ASSIGN_OR_RETURN(const Text* name, args.String(place++, "test"));
    test = name->view();
    rest.positional.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(place),
                           args.positional.end());
  }
  // The comparison signs are test names too.
  static constexpr std::pair<std::string_view, std::string_view> kSigns[] = {
      {"==", "eq"}, {"!=", "ne"}, {"<", "lt"}, {"<=", "le"}, {">", "gt"}, {">=", "ge"}};
  for (const auto& [sign, name] : kSigns) {
    if (test == sign) test = name;
  }
  Items kept;
  for (Value& item : items) {
    Value subject = item;
    if (by_attribute) {
      CADRE_ASSIGN_OR_RETURN(subject, Attribute(item, attribute, budget));
    }
    bool holds = subject.Truthy();
    if (!test.empty()) {
      CADRE_ASSIGN_OR_RETURN(holds, ApplyTest(test, subject, rest, budget));
    }
    if (holds == keep) kept.push_back(std::move(item));
  }
  return Value::Of(std::move(kept));
}

Result Select(const Value& in, const Arguments& a, Budget* b) {
  return Choose(in, a, false, true, b);
}
Result Reject(const Value& in, const Arguments& a, Budget* b) {
  return Choose(in, a, false, false, b);
}
Result SelectAttr(const Value& in, const Arguments& a, Budget* b) {
  return Choose(in, a, true, true, b);
}
Result RejectAttr(const Value& in, const Arguments& a, Budget* b) {
  return Choose(in, a, true, false, b);
}

Result Map(const Value& input, const Arguments& args, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Items items, Iterate(input, budget));
  const Value* fallback = args.Get(99, "default");
  if (args.positional.empty()) {
    CADRE_ASSIGN_OR_RETURN(const Text* attribute, args.String(99, "attribute"));
    for (Value& item : items) {
      CADRE_ASSIGN_OR_RETURN(item, Attribute(item, attribute->view(), budget));
      if (item.is_undefined() && fallback) item = *fallback;
    }
    return Value::Of(std::move(items));
  }
  CADRE_ASSIGN_OR_RETURN(const Text* filter, args.String(0, "filter"));
  // Filters that take filters would nest without bound.
  for (std::string_view nested : {"map", "select", "reject", "selectattr", "rejectattr"}) {
    if (filter->view() == nested) return InvalidArgument("map('{}') is not supported", nested);
  }
  Arguments rest{.positional = {args.positional.begin() + 1, args.positional.end()},
                 .named = args.named};
  for (Value& item : items) {
    CADRE_ASSIGN_OR_RETURN(item, ApplyFilter(filter->view(), item, rest, budget));
  }
  return Value::Of(std::move(items));
}

Result ListFilter(const Value& input, const Arguments&, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Items items, Iterate(input, budget));
  return Value::Of(std::move(items));
}

Result First(const Value& input, const Arguments&, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Items items, Iterate(input, budget));
  return items.empty() ? Value() : items.front();
}

Result Last(const Value& input, const Arguments&, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Items items, Iterate(input, budget));
  return items.empty() ? Value() : items.back();
}

Result Reverse(const Value& input, const Arguments&, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Items items, Iterate(input, budget));
  std::reverse(items.begin(), items.end());
  if (input.as_text()) return Join(Value::Of(std::move(items)), {}, budget);
  return Value::Of(std::move(items));
}

Result ItemsFilter(const Value& input, const Arguments&, Budget* budget) {
  if (input.is_undefined()) return Value::Of(Items());
  const Dict* dict = input.as_dict();
  if (!dict) return InvalidArgument("items takes a dict, got {}", input.TypeName());
  CADRE_RETURN_IF_ERROR(budget->Steps(static_cast<int64_t>(dict->items().size())));
  CADRE_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(dict->items().size() * 128)));
  Items pairs;
  for (const auto& [key, value] : dict->items()) {
    pairs.push_back(Value::Of(Items{Value::Of(key), value}));
  }
  return Value::Of(std::move(pairs));
}

Result SortItems(Items items, std::string_view attribute, bool reverse, bool ignore_case,
                 Budget* budget) {
  struct Entry {
    Value key, item;
  };
  std::vector<Entry> entries;
  for (Value& item : items) {
    Value key = item;
    if (!attribute.empty()) {
      CADRE_ASSIGN_OR_RETURN(key, Attribute(item, attribute, budget));
    }
    if (ignore_case && key.as_text()) key = Value::Of(ChangeCase(*key.as_text(), Case::kLower));
    if (!entries.empty()) CADRE_RETURN_IF_ERROR(Compare(entries[0].key, key, budget).status());
    // The comparisons that the sort takes.
    if (key.as_text()) CADRE_RETURN_IF_ERROR(budget->Read(20 * key.as_text()->size()));
    entries.push_back({std::move(key), std::move(item)});
  }
  auto count = static_cast<int64_t>(entries.size());
  CADRE_RETURN_IF_ERROR(budget->Steps(count * 20));
  std::stable_sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
    return (reverse ? Compare(b.key, a.key, nullptr) : Compare(a.key, b.key, nullptr)).value() < 0;
  });
  for (size_t i = 0; i < items.size(); ++i) items[i] = std::move(entries[i].item);
  return Value::Of(std::move(items));
}

Result Sort(const Value& input, const Arguments& args, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Items items, Iterate(input, budget));
  CADRE_ASSIGN_OR_RETURN(bool reverse, args.Bool(0, "reverse", false));
  CADRE_ASSIGN_OR_RETURN(bool case_sensitive, args.Bool(1, "case_sensitive", false));
  const Value* attribute = args.Get(2, "attribute");
  std::string_view path = attribute && attribute->as_text() ? attribute->as_text()->view() : "";
  return SortItems(std::move(items), path, reverse, !case_sensitive, budget);
}

Result DictSort(const Value& input, const Arguments& args, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Value pairs, ItemsFilter(input, {}, budget));
  CADRE_ASSIGN_OR_RETURN(bool case_sensitive, args.Bool(0, "case_sensitive", false));
  CADRE_ASSIGN_OR_RETURN(bool reverse, args.Bool(2, "reverse", false));
  const Value* by = args.Get(1, "by");
  bool by_value = by && by->as_text() && by->as_text()->view() == "value";
  return SortItems(*pairs.as_list(), by_value ? "1" : "0", reverse, !case_sensitive, budget);
}

Result Unique(const Value& input, const Arguments&, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Items items, Iterate(input, budget));
  Items kept;
  for (Value& item : items) {
    CADRE_ASSIGN_OR_RETURN(bool seen, Contains(Value::Of(kept), item, budget));
    CADRE_RETURN_IF_ERROR(budget->Steps(static_cast<int64_t>(kept.size())));
    if (!seen) kept.push_back(std::move(item));
  }
  return Value::Of(std::move(kept));
}

Result Int(const Value& input, const Arguments& args, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(int64_t fallback, args.Int(0, "default", 0));
  int64_t integer = 0;
  double number = 0;
  if (input.ToInt(&integer)) return Value::Of(integer);
  bool known = input.ToDouble(&number);
  if (const Text* text = input.as_text()) {
    CADRE_RETURN_IF_ERROR(budget->Read(text->size()));
    Text digits = Strip(*text, Side::kBoth, std::nullopt);
    const char* end = digits.bytes().data() + digits.size();
    auto result = std::from_chars(digits.bytes().data(), end, integer);
    if (result.ec == std::errc() && result.ptr == end) return Value::Of(integer);
    auto real = std::from_chars(digits.bytes().data(), end, number);
    known = real.ec == std::errc() && real.ptr == end;
  }
  bool fits = known && std::fabs(number) < 9e18;
  return Value::Of(fits ? static_cast<int64_t>(number) : fallback);
}

Result Float(const Value& input, const Arguments&, Budget* budget) {
  double number = 0;
  if (const Text* text = input.as_text()) {
    CADRE_RETURN_IF_ERROR(budget->Read(text->size()));
    Text digits = Strip(*text, Side::kBoth, std::nullopt);
    const char* end = digits.bytes().data() + digits.size();
    auto result = std::from_chars(digits.bytes().data(), end, number);
    if (result.ec != std::errc() || result.ptr != end) number = 0;
  } else {
    input.ToDouble(&number);
  }
  return Value::Of(number);
}

Result Abs(const Value& input, const Arguments&, Budget*) {
  int64_t integer = 0;
  double number = 0;
  if (input.ToInt(&integer) && integer != INT64_MIN) return Value::Of(std::abs(integer));
  if (input.ToDouble(&number)) return Value::Of(std::fabs(number));
  return InvalidArgument("abs takes a number, got {}", input.TypeName());
}

Result Indent(const Value& input, const Arguments& args, Budget* budget) {
  CADRE_ASSIGN_OR_RETURN(Text text, ToText(input, budget));
  CADRE_ASSIGN_OR_RETURN(bool first, args.Bool(1, "first", false));
  CADRE_ASSIGN_OR_RETURN(bool blank, args.Bool(2, "blank", false));
  std::string pad;
  const Value* width = args.Get(0, "width");
  if (width && width->as_text()) {
    pad = width->as_text()->bytes();
  } else {
    CADRE_ASSIGN_OR_RETURN(int64_t spaces, args.Int(0, "width", 4));
    if (spaces < 0 || spaces > 1000) return InvalidArgument("indent: width {}", spaces);
    pad.assign(static_cast<size_t>(spaces), ' ');
  }
  size_t lines = CountOccurrences(text.view(), "\n") + 1;
  CADRE_RETURN_IF_ERROR(budget->Read(text.size()));
  CADRE_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(text.size() + lines * pad.size())));
  Text result;
  for (size_t begin = 0, line = 0; line < lines; ++line) {
    size_t end = std::min(text.view().find('\n', begin), text.size());
    bool indented = line == 0 ? first : (blank || end > begin);
    if (indented) result.Append(pad, Origin::kUser);
    result.AppendSlice(text, begin, end + 1);
    begin = end + 1;
  }
  return Value::Of(std::move(result));
}

Result Same(const Value& input, const Arguments&, Budget*) { return input; }

}  // namespace

absl::StatusOr<Value> ApplyFilter(std::string_view name, const Value& input, const Arguments& args,
                                  Budget* budget) {
  using Filter = Result (*)(const Value&, const Arguments&, Budget*);
  static constexpr std::pair<std::string_view, Filter> kFilters[] = {{"trim", Trim},
                                                                     {"tojson", ToJsonFilter},
                                                                     {"join", Join},
                                                                     {"length", Length},
                                                                     {"count", Length},
                                                                     {"upper", Upper},
                                                                     {"lower", Lower},
                                                                     {"title", Title},
                                                                     {"capitalize", Capitalize},
                                                                     {"replace", ReplaceFilter},
                                                                     {"string", String},
                                                                     {"default", Default},
                                                                     {"d", Default},
                                                                     {"select", Select},
                                                                     {"reject", Reject},
                                                                     {"selectattr", SelectAttr},
                                                                     {"rejectattr", RejectAttr},
                                                                     {"map", Map},
                                                                     {"list", ListFilter},
                                                                     {"first", First},
                                                                     {"last", Last},
                                                                     {"reverse", Reverse},
                                                                     {"items", ItemsFilter},
                                                                     {"sort", Sort},
                                                                     {"dictsort", DictSort},
                                                                     {"unique", Unique},
                                                                     {"int", Int},
                                                                     {"float", Float},
                                                                     {"abs", Abs},
                                                                     {"indent", Indent},
                                                                     {"safe", Same}};
  CADRE_RETURN_IF_ERROR(budget->Steps(1));
  for (const auto& [key, filter] : kFilters) {
    if (key == name) return filter(input, args, budget);
  }
  return InvalidArgument("no filter named '{}'", name.substr(0, 40));
}

}  // namespace cadre::jinja
