#include "model/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace cadre::jinja {

absl::Status Budget::Steps(int64_t count) {
  steps_ += count;
  if (steps_ <= limits_.max_steps) return absl::OkStatus();
  return InvalidArgument("more than {} steps", limits_.max_steps);
}

absl::Status Budget::Bytes(int64_t count) {
  bytes_ += count;
  if (bytes_ <= limits_.max_bytes) return absl::OkStatus();
  return InvalidArgument("strings of more than {} bytes in all", limits_.max_bytes);
}

// What is less than a step counts, too: a template can do it millions of times.
absl::Status Budget::Read(size_t bytes) {
  constexpr size_t kStep = 64;
  read_ += bytes % kStep;
  const size_t steps = bytes / kStep + read_ / kStep;
  read_ %= kStep;
  return steps == 0 ? absl::OkStatus() : Steps(static_cast<int64_t>(steps));
}

// At each byte of the text a comparison, which reads 16 bytes of the needle at a time.
absl::Status Budget::Search(size_t text, size_t needle) {
  const double cost = static_cast<double>(text) * (1 + static_cast<double>(needle) / 16);
  if (cost > 1e15) return Steps(limits_.max_steps + 1);
  return Read(static_cast<size_t>(cost));
}

void Dict::Set(Text key, Value value) {
  depth_ = std::max(depth_, value.depth() + 1);
  auto [entry, added] = index_.try_emplace(key.bytes(), items_.size());
  if (added) {
    items_.emplace_back(std::move(key), std::move(value));
  } else {
    items_[entry->second].second = std::move(value);
  }
}

const Value* Dict::Find(std::string_view key) const {
  auto entry = index_.find(std::string(key));
  return entry == index_.end() ? nullptr : &items_[entry->second].second;
}

Value Value::Of(std::vector<Value> items) {
  List list{.items = std::move(items)};
  for (const Value& item : list.items) list.depth = std::max(list.depth, item.depth() + 1);
  return Value(Rep(std::make_shared<const List>(std::move(list))));
}

const std::vector<Value>* Value::as_list() const {
  const List* list = Pointee<List>();
  return list ? &list->items : nullptr;
}

bool Value::ToInt(int64_t* result) const {
  if (const bool* b = as_bool()) *result = *b;
  if (const int64_t* i = as_int()) *result = *i;
  return as_bool() || as_int();
}

bool Value::ToDouble(double* result) const {
  int64_t integer = 0;
  if (ToInt(&integer)) *result = static_cast<double>(integer);
  if (const double* d = as_float()) *result = *d;
  return is_number();
}

bool Value::Truthy() const {
  double number = 0;
  if (is_undefined() || is_none()) return false;
  if (ToDouble(&number)) return number != 0;
  if (const Text* text = as_text()) return !text->empty();
  if (auto* list = as_list()) return !list->empty();
  if (const Dict* dict = as_dict()) return !dict->items().empty();
  return true;
}

int Value::depth() const {
  if (const List* list = Pointee<List>()) return list->depth;
  if (const Dict* dict = as_dict()) return dict->depth();
  return 0;
}

std::string_view Value::TypeName() const {
  if (is_undefined()) return "undefined";
  if (is_none()) return "None";
  if (as_bool()) return "bool";
  if (as_int()) return "int";
  if (as_float()) return "float";
  if (as_text()) return "str";
  if (as_list()) return "list";
  if (as_dict()) return "dict";
  if (as_namespace()) return "namespace";
  return as_loop() ? "loop" : "function";
}

namespace {

absl::StatusOr<bool> EqualLists(const std::vector<Value>& a, const std::vector<Value>& b,
                                Budget* budget) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    CADRE_ASSIGN_OR_RETURN(bool equal, Equal(a[i], b[i], budget));
    if (!equal) return false;
  }
  return true;
}

absl::StatusOr<bool> EqualDicts(const Dict& a, const Dict& b, Budget* budget) {
  if (a.items().size() != b.items().size()) return false;
  for (const auto& [key, value] : a.items()) {
    CADRE_RETURN_IF_ERROR(budget->Read(key.size()));
    const Value* other = b.Find(key.view());
    if (!other) return false;
    CADRE_ASSIGN_OR_RETURN(bool equal, Equal(value, *other, budget));
    if (!equal) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<bool> Equal(const Value& a, const Value& b, Budget* budget) {
  CADRE_RETURN_IF_ERROR(budget->Steps(1));
  int64_t i = 0, j = 0;
  double x = 0, y = 0;
  if (a.ToInt(&i) && b.ToInt(&j)) return i == j;
  if (a.ToDouble(&x) && b.ToDouble(&y)) return x == y;
  if (a.as_text() && b.as_text()) {
    if (a.as_text()->size() != b.as_text()->size()) return false;
    CADRE_RETURN_IF_ERROR(budget->Read(a.as_text()->size()));
    return a.as_text()->view() == b.as_text()->view();
  }
  if (a.as_list() && b.as_list()) return EqualLists(*a.as_list(), *b.as_list(), budget);
  if (a.as_dict() && b.as_dict()) return EqualDicts(*a.as_dict(), *b.as_dict(), budget);
  if (a.as_namespace() && b.as_namespace()) {
    return a.as_namespace()->index == b.as_namespace()->index;
  }
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

absl::StatusOr<int> Compare(const Value& a, const Value& b, Budget* budget) {
  int64_t i = 0, j = 0;
  double x = 0, y = 0;
  if (a.ToInt(&i) && b.ToInt(&j)) return (i > j) - (i < j);
  if (a.ToDouble(&x) && b.ToDouble(&y)) return (x > y) - (x < y);
  if (a.as_text() && b.as_text()) {
    const size_t bytes = std::min(a.as_text()->size(), b.as_text()->size());
    if (budget != nullptr) CADRE_RETURN_IF_ERROR(budget->Read(bytes));
    return a.as_text()->view().compare(b.as_text()->view());
  }
  return InvalidArgument("{} and {} have no order", a.TypeName(), b.TypeName());
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget* budget) {
  if (const Text* text = container.as_text()) {
    const Text* needle = item.as_text();
    if (!needle) return InvalidArgument("'in <str>' needs a str, got {}", item.TypeName());
    CADRE_RETURN_IF_ERROR(budget->Search(text->size(), needle->size()));
    return text->view().find(needle->view()) != std::string_view::npos;
  }
  if (const Dict* dict = container.as_dict()) {
    if (!item.as_text()) return false;
    CADRE_RETURN_IF_ERROR(budget->Read(item.as_text()->size()));
    return dict->Find(item.as_text()->view()) != nullptr;
  }
  if (container.is_undefined()) return false;
  if (!container.as_list()) return InvalidArgument("{} is not iterable", container.TypeName());
  for (const Value& element : *container.as_list()) {
    CADRE_ASSIGN_OR_RETURN(bool equal, Equal(element, item, budget));
    if (equal) return true;
  }
  return false;
}

absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget) {
  std::vector<Value> items;
  auto charge = [&](size_t count) -> absl::Status {
    CADRE_RETURN_IF_ERROR(budget->Steps(static_cast<int64_t>(count)));
    return budget->Bytes(static_cast<int64_t>(count * sizeof(Value)));
  };
  if (auto* list = value.as_list()) {
    CADRE_RETURN_IF_ERROR(charge(list->size()));
    return *list;
  }
  if (const Dict* dict = value.as_dict()) {
    CADRE_RETURN_IF_ERROR(charge(dict->items().size()));
    for (const auto& entry : dict->items()) items.push_back(Value::Of(entry.first));
    return items;
  }
  if (const Text* text = value.as_text()) {
    CADRE_RETURN_IF_ERROR(charge(text->size()));
    for (size_t pos = 0; pos < text->size();) {
      size_t begin = pos;
      NextCodePoint(text->view(), &pos);
      items.push_back(Value::Of(text->Slice(begin, pos)));
    }
    return items;
  }
  if (value.is_undefined()) return items;
  return InvalidArgument("{} is not iterable", value.TypeName());
}

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[32];
  double size = std::fabs(value);
  bool fixed = size == 0 || (size >= 1e-4 && size < 1e16);
  auto format = fixed ? std::chars_format::fixed : std::chars_format::scientific;
  char* end = std::to_chars(buffer, buffer + sizeof(buffer), value, format).ptr;
  std::string text(buffer, end);
  if (fixed && text.find('.') == std::string::npos) text += ".0";
  return text;
}

}  // namespace cadre::jinja
