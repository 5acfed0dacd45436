// Checked access to a parsed tokenizer file: every failure names file, field, value and what is
// allowed. Private to the tokenizer's sources (it includes simdjson).
#pragma once

#include <simdjson.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "core/status.h"

namespace cadre {

struct JsonNode {
  simdjson::dom::element value;
  std::string where;  // "dir/tokenizer.json: model.vocab"

  bool is_null() const { return value.is_null(); }
  // A field of an object; nullopt when absent or null, or when this is no object.
  std::optional<JsonNode> Find(std::string_view key) const;
  absl::StatusOr<JsonNode> Get(std::string_view key) const;
  JsonNode Item(simdjson::dom::element item, size_t index) const;

  absl::StatusOr<simdjson::dom::array> Array() const;
  absl::StatusOr<simdjson::dom::object> Object() const;
  absl::StatusOr<std::string_view> String() const;
  absl::StatusOr<int64_t> Integer(int64_t low, int64_t high) const;

  absl::StatusOr<std::string_view> GetString(std::string_view key) const;
  absl::StatusOr<std::string_view> GetString(std::string_view key, std::string_view absent) const;
  absl::StatusOr<bool> GetBool(std::string_view key, bool absent) const;
  // GetString of a name that must be one of `allowed`.
  absl::StatusOr<size_t> GetChoice(std::string_view key,
                                   std::initializer_list<std::string_view> allowed,
                                   size_t absent) const;

  absl::Status Wrong(std::string_view allowed) const;
};

// Calls `visit(node)` for the element itself or, where its "type" is "Sequence", for each part of
// the array `parts`, nested up to 8 deep, in order.
template <typename Visit>
absl::Status VisitSequence(const JsonNode& node, std::string_view parts, Visit visit,
                           int depth = 0) {
  CADRE_ASSIGN_OR_RETURN(const std::string_view type, node.GetString("type"));
  if (type != "Sequence") return visit(node, type);
  if (depth == 8) return InvalidArgument("{}: sequences nest deeper than 8", node.where);
  CADRE_ASSIGN_OR_RETURN(const JsonNode list, node.Get(parts));
  CADRE_ASSIGN_OR_RETURN(const simdjson::dom::array items, list.Array());
  size_t index = 0;
  for (const simdjson::dom::element item : items) {
    CADRE_RETURN_IF_ERROR(VisitSequence(list.Item(item, index++), parts, visit, depth + 1));
  }
  return absl::OkStatus();
}

}  // namespace cadre
