// The fixed vocabulary of the template language: filters, tests, methods of strings and dicts, and
// functions. Each has one explicit table; nothing here reaches files, attributes of the program or
// the network.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/jinja_value.h"

namespace cadre::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at this place or of this name; null when not given.
  const Value* Get(size_t place, std::string_view name) const;
  absl::StatusOr<int64_t> Int(size_t place, std::string_view name, int64_t fallback) const;
  absl::StatusOr<bool> Bool(size_t place, std::string_view name, bool fallback) const;
  // An error when absent or not a string.
  absl::StatusOr<const Text*> String(size_t place, std::string_view name) const;
};

absl::StatusOr<Value> ApplyFilter(std::string_view name, const Value& input, const Arguments& args,
                                  Budget* budget);
absl::StatusOr<bool> ApplyTest(std::string_view name, const Value& input, const Arguments& args,
                               Budget* budget);
absl::StatusOr<Value> CallMethod(const Value& object, std::string_view method,
                                 const Arguments& args, Budget* budget);
// Methods hide keys of the same name behind a dot, as in Python: d.items is never d["items"].
bool IsDictMethod(std::string_view name);

// range, dict, raise_exception and strftime_now (of `now`, seconds since 1970, local time);
// namespaces belong to the evaluator.
absl::StatusOr<Value> CallFunction(Builtin function, const Arguments& args, int64_t now,
                                   Budget* budget);

// object.name and object[key] for plain values; undefined where there is no such element.
absl::StatusOr<Value> GetAttribute(const Value& object, std::string_view name);
absl::StatusOr<Value> GetItem(const Value& object, const Value& key);

}  // namespace cadre::jinja
