// The values of the template language: Python's None, bool, int, float, str, list and dict, and
// what templates themselves make (namespaces, loops, macros). Containers are shared and immutable;
// only a namespace changes, and it lives in the evaluator, so no value can hold itself.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "core/status.h"
#include "model/jinja_text.h"

namespace cadre::jinja {

struct Statement;
class Value;

// What one rendering may use; a template or a message that asks for more is refused.
struct Limits {
  int64_t max_steps = 4'000'000;           // nodes evaluated, elements visited, 64 bytes read
  int64_t max_bytes = int64_t{128} << 20;  // bytes of all strings and lists made on the way
  int64_t max_output = int64_t{16} << 20;  // bytes of the result
  int max_depth = 300;                     // nested evaluations; lists in lists are kept to 100
};

class Budget {
 public:
  explicit Budget(const Limits& limits) : limits_(limits) {}
  const Limits& limits() const { return limits_; }
  absl::Status Steps(int64_t count);
  absl::Status Bytes(int64_t count);
  // For going through so many bytes once: comparisons, scans, hashes of keys. 64 are a step.
  absl::Status Read(size_t bytes);
  // For a search of `needle` bytes in `text` bytes, whose worst case is their product.
  absl::Status Search(size_t text, size_t needle);

 private:
  Limits limits_;
  int64_t steps_ = 0;
  int64_t bytes_ = 0;
  size_t read_ = 0;  // of the next step
};

struct List {
  std::vector<Value> items;
  int depth = 1;
};

// Keeps the order of insertion; a key that comes again replaces the value in place.
class Dict {
 public:
  void Set(Text key, Value value);
  const Value* Find(std::string_view key) const;  // null when absent
  const std::vector<std::pair<Text, Value>>& items() const { return items_; }
  int depth() const { return depth_; }

 private:
  std::vector<std::pair<Text, Value>> items_;
  std::unordered_map<std::string, size_t> index_;
  int depth_ = 1;
};

struct LoopState;
// kMethod stands for a method that is named but not called.
enum class Builtin { kRange, kNamespace, kDict, kRaiseException, kStrftimeNow, kMethod };

class Value {
 public:
  struct Undefined {};
  struct None {};
  struct Namespace {
    size_t index;
  };
  struct Macro {
    const Statement* definition;
  };

  Value() = default;  // undefined
  static Value OfNone() { return Value(Rep(None{})); }
  static Value Of(bool value) { return Value(Rep(value)); }
  static Value Of(int64_t value) { return Value(Rep(value)); }
  static Value Of(double value) { return Value(Rep(value)); }
  static Value Of(Text text) { return Value(Rep(std::make_shared<const Text>(std::move(text)))); }
  static Value Of(std::vector<Value> items);
  static Value Of(Dict dict) { return Value(Rep(std::make_shared<const Dict>(std::move(dict)))); }
  static Value Of(Namespace ns) { return Value(Rep(ns)); }
  static Value Of(Macro macro) { return Value(Rep(macro)); }
  static Value Of(Builtin builtin) { return Value(Rep(builtin)); }
  static Value Of(std::shared_ptr<const LoopState> loop) { return Value(Rep(std::move(loop))); }

  bool is_undefined() const { return std::holds_alternative<Undefined>(rep_); }
  bool is_none() const { return std::holds_alternative<None>(rep_); }
  const bool* as_bool() const { return std::get_if<bool>(&rep_); }
  const int64_t* as_int() const { return std::get_if<int64_t>(&rep_); }
  const double* as_float() const { return std::get_if<double>(&rep_); }
  const Text* as_text() const { return Pointee<Text>(); }
  const std::vector<Value>* as_list() const;
  const Dict* as_dict() const { return Pointee<Dict>(); }
  const LoopState* as_loop() const { return Pointee<LoopState>(); }
  const Namespace* as_namespace() const { return std::get_if<Namespace>(&rep_); }
  const Macro* as_macro() const { return std::get_if<Macro>(&rep_); }
  const Builtin* as_builtin() const { return std::get_if<Builtin>(&rep_); }

  bool is_number() const { return as_bool() || as_int() || as_float(); }
  // A bool or an int, as Python's arithmetic takes them.
  bool ToInt(int64_t* result) const;
  bool ToDouble(double* result) const;
  bool Truthy() const;
  int depth() const;                  // of lists and dicts within each other; 0 for the rest
  std::string_view TypeName() const;  // as in Python: "str", "list", ...

 private:
  using Rep = std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
                           std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                           std::shared_ptr<const LoopState>, Namespace, Macro, Builtin>;
  explicit Value(Rep rep) : rep_(std::move(rep)) {}
  template <typename T>
  const T* Pointee() const {
    auto* pointer = std::get_if<std::shared_ptr<const T>>(&rep_);
    return pointer ? pointer->get() : nullptr;
  }
  Rep rep_;
};

struct LoopState {
  std::shared_ptr<const List> list;  // what is left after the loop's own condition
  size_t index = 0;
};

// Python's ==; ints, floats and bools compare by value, different types are unequal.
absl::StatusOr<bool> Equal(const Value& a, const Value& b, Budget* budget);
// < 0, 0, > 0 for numbers and strings; an error for other pairs. budget: null where the caller
// charges for it.
absl::StatusOr<int> Compare(const Value& a, const Value& b, Budget* budget);
// Python's `item in container`.
absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget* budget);
// What a for loop visits: elements, keys or characters; nothing for an undefined value.
absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget);
// Python's str(): strings as they are, the rest written out, as the user's text.
absl::StatusOr<Text> ToText(const Value& value, Budget* budget);
// Python's repr of a float: the shortest digits that read back the same.
std::string FloatRepr(double value);

// JSON text to a value, its strings the user's, nested at most 64 deep. `what` names the text in
// the error.
absl::StatusOr<Value> ParseJson(std::string_view json, std::string_view what);

// Python's json.dumps. indent < 0: on one line.
struct JsonStyle {
  int64_t indent = -1;
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::string item_separator;  // empty: Python's default for this indent
  std::string key_separator = ": ";
};
absl::StatusOr<Text> ToJson(const Value& value, const JsonStyle& style, Budget* budget);

}  // namespace cadre::jinja
