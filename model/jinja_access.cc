// Attributes, items, arguments and the functions that templates call by name.
#include <ctime>

#include "model/jinja_builtins.h"

namespace cadre::jinja {

const Value* Arguments::Get(size_t place, std::string_view name) const {
  if (place < positional.size()) return &positional[place];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

absl::StatusOr<int64_t> Arguments::Int(size_t place, std::string_view name,
                                       int64_t fallback) const {
  const Value* value = Get(place, name);
  if (!value || value->is_none()) return fallback;
  int64_t result = 0;
  if (!value->ToInt(&result)) {
    return InvalidArgument("argument '{}' must be an int, got {}", name, value->TypeName());
  }
  return result;
}

absl::StatusOr<bool> Arguments::Bool(size_t place, std::string_view name, bool fallback) const {
  const Value* value = Get(place, name);
  return value ? value->Truthy() : fallback;
}

absl::StatusOr<const Text*> Arguments::String(size_t place, std::string_view name) const {
  const Value* value = Get(place, name);
  if (!value || !value->as_text()) {
    return InvalidArgument("argument '{}' must be a str, got {}", name,
                           value ? value->TypeName() : "nothing");
  }
  return value->as_text();
}

namespace {

absl::StatusOr<Value> LoopAttribute(const LoopState& loop, std::string_view name) {
  const std::vector<Value>& items = loop.list->items;
  auto index = static_cast<int64_t>(loop.index);
  auto length = static_cast<int64_t>(items.size());
  if (name == "index") return Value::Of(index + 1);
  if (name == "index0") return Value::Of(index);
  if (name == "revindex") return Value::Of(length - index);
  if (name == "revindex0") return Value::Of(length - index - 1);
  if (name == "first") return Value::Of(index == 0);
  if (name == "last") return Value::Of(index == length - 1);
  if (name == "length") return Value::Of(length);
  if (name == "previtem") return index > 0 ? items[loop.index - 1] : Value();
  if (name == "nextitem") return index + 1 < length ? items[loop.index + 1] : Value();
  return InvalidArgument("loop.{} is not supported", name.substr(0, 40));
}

absl::StatusOr<Value> Range(const Arguments& args, Budget* budget) {
  if (args.positional.empty() || args.positional.size() > 3 || !args.named.empty()) {
    return InvalidArgument("range takes 1 to 3 ints");
  }
  int64_t bounds[3] = {0, 0, 1};
  for (size_t i = 0; i < args.positional.size(); ++i) {
    if (!args.positional[i].ToInt(&bounds[args.positional.size() == 1 ? 1 : i])) {
      return InvalidArgument("range takes ints, got {}", args.positional[i].TypeName());
    }
  }
  auto [begin, end, step] = bounds;
  if (step == 0) return InvalidArgument("range: the step is 0");
  // Unsigned arithmetic: the distance of two int64 may not fit one.
  bool forward = step > 0;
  uint64_t distance = 0;
  if (forward && end > begin) distance = uint64_t(end) - uint64_t(begin);
  if (!forward && begin > end) distance = uint64_t(begin) - uint64_t(end);
  uint64_t stride = forward ? uint64_t(step) : uint64_t(0) - uint64_t(step);
  uint64_t count = distance / stride + (distance % stride != 0);
  constexpr uint64_t kMaxRange = 1'000'000;
  if (count > kMaxRange)
    return InvalidArgument("range of {} elements, at most {}", count, kMaxRange);
  CADRE_RETURN_IF_ERROR(budget->Steps(static_cast<int64_t>(count)));
  CADRE_RETURN_IF_ERROR(budget->Bytes(static_cast<int64_t>(count * sizeof(Value))));
  std::vector<Value> items;
  items.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    items.push_back(Value::Of(static_cast<int64_t>(uint64_t(begin) + i * uint64_t(step))));
  }
  return Value::Of(std::move(items));
}

absl::StatusOr<Value> StrftimeNow(const Arguments& args, int64_t now) {
  CADRE_ASSIGN_OR_RETURN(const Text* format, args.String(0, "format"));
  if (format->size() > 256 || format->bytes().find('\0') != std::string::npos) {
    return InvalidArgument("strftime_now: a format of {} bytes, at most 256", format->size());
  }
  auto seconds = static_cast<std::time_t>(now);
  std::tm local{};
  localtime_r(&seconds, &local);
  char buffer[4096];
  size_t size = std::strftime(buffer, sizeof(buffer), format->bytes().c_str(), &local);
  bool trusted = format->FromTemplate(0, format->size());
  return Value::Of(Text(std::string(buffer, size), trusted ? Origin::kTemplate : Origin::kUser));
}

}  // namespace

absl::StatusOr<Value> CallFunction(Builtin function, const Arguments& args, int64_t now,
                                   Budget* budget) {
  switch (function) {
    case Builtin::kRange:
      return Range(args, budget);
    case Builtin::kStrftimeNow:
      return StrftimeNow(args, now);
    case Builtin::kRaiseException: {
      CADRE_ASSIGN_OR_RETURN(const Text* message, args.String(0, "message"));
      return InvalidArgument("{}", message->view().substr(0, 1000));
    }
    case Builtin::kDict: {
      if (!args.positional.empty()) return InvalidArgument("dict takes named arguments only");
      Dict dict;
      for (const auto& [key, value] : args.named) dict.Set(Text(key, Origin::kTemplate), value);
      return Value::Of(std::move(dict));
    }
    case Builtin::kNamespace:
    case Builtin::kMethod:
      break;
  }
  return InvalidArgument("a method must be called where it is named");
}

bool IsDictMethod(std::string_view name) {
  for (std::string_view method : {"items", "keys", "values", "get", "pop", "popitem", "update",
                                  "copy", "clear", "setdefault", "fromkeys"}) {
    if (name == method) return true;
  }
  return false;
}

absl::StatusOr<Value> GetAttribute(const Value& object, std::string_view name) {
  if (name.starts_with("__")) {
    return InvalidArgument("the attribute '{}' is not allowed", name.substr(0, 40));
  }
  if (const LoopState* loop = object.as_loop()) return LoopAttribute(*loop, name);
  if (const Dict* dict = object.as_dict()) {
    if (IsDictMethod(name)) return Value::Of(Builtin::kMethod);
    const Value* value = dict->Find(name);
    return value ? *value : Value();
  }
  return Value();
}

absl::StatusOr<Value> GetItem(const Value& object, const Value& key) {
  if (const Dict* dict = object.as_dict()) {
    const Value* value = key.as_text() ? dict->Find(key.as_text()->view()) : nullptr;
    return value ? *value : Value();
  }
  int64_t index = 0;
  if (!key.ToInt(&index)) {
    if (key.as_text()) return GetAttribute(object, key.as_text()->view());
    return Value();
  }
  auto place = [&](size_t size) {
    int64_t at = index < 0 ? index + static_cast<int64_t>(size) : index;
    return at >= 0 && at < static_cast<int64_t>(size) ? at : -1;
  };
  if (auto* list = object.as_list()) {
    int64_t at = place(list->size());
    return at < 0 ? Value() : (*list)[static_cast<size_t>(at)];
  }
  if (const Text* text = object.as_text()) {
    std::vector<size_t> offsets = CodePointOffsets(text->view());
    int64_t at = place(offsets.size() - 1);
    if (at < 0) return Value();
    auto i = static_cast<size_t>(at);
    return Value::Of(text->Slice(offsets[i], offsets[i + 1]));
  }
  return Value();
}

}  // namespace cadre::jinja
