// The work behind serving/grammar/json_schema.h; for its two .cc files.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "serving/grammar/grammar.h"
#include "serving/grammar/json_grammar.h"

namespace cadre {

class JsonSchemaWriter {
 public:
  using Json = nlohmann::ordered_json;

  JsonSchemaWriter(const Json& document, const GrammarLimits& limits)
      : document_(document), limits_(limits), json_(g_) {}

  absl::StatusOr<Grammar> Write();

 private:
  // Where in the document a schema stands, for messages, and how deep.
  struct Place {
    static constexpr size_t kShown = 300;  // a name may be as long as the document
    std::string pointer = "#";
    int depth = 0;
    Place Below(const std::string& name) const {
      return {(pointer + "/" + name).substr(0, kShown), depth + 1};
    }
  };

  absl::Status Error(const Place& place, const std::string& message) const;
  absl::Status Spend(size_t work, const Place& place);
  absl::StatusOr<NodeId> Schema(const Json& schema, const Place& place);
  absl::StatusOr<NodeId> Plain(const Json& schema, const Place& place);
  absl::Status CheckKeywords(const Json& schema, const Place& place) const;
  // $ref, allOf, anyOf, oneOf: with the keywords beside them.
  absl::StatusOr<NodeId> Reference(const Json& schema, const Place& place);
  absl::StatusOr<NodeId> AllOf(const Json& schema, const Place& place);
  absl::StatusOr<NodeId> OneOf(const char* keyword, const Json& schema, const Place& place);
  absl::StatusOr<Json> Merge(const Json& a, const Json& b, const Place& place);
  absl::StatusOr<const Json*> Resolve(const Json& ref, const Place& place) const;
  absl::StatusOr<NodeId> RuleOf(const Json& ref, const Place& place);
  absl::StatusOr<NodeId> Values(const Json& schema, const Place& place);
  absl::StatusOr<std::vector<std::string>> Types(const Json& schema, const Place& place) const;
  absl::StatusOr<NodeId> OfType(const std::string& type, const Json& schema, const Place& place);

  // json_schema_types.cc
  absl::StatusOr<NodeId> String(const Json& schema, const Place& place);
  absl::StatusOr<NodeId> Number(const Json& schema, const Place& place, bool integer);
  absl::StatusOr<NodeId> Array(const Json& schema, const Place& place);
  absl::StatusOr<NodeId> Object(const Json& schema, const Place& place);
  absl::StatusOr<std::vector<std::string>> Required(const Json& schema, const Place& place) const;
  absl::StatusOr<NodeId> Map(const Json& schema, const Place& place);
  absl::StatusOr<NodeId> OtherMembers(const Json& schema, const std::set<std::string>& named,
                                      const Place& place);
  absl::StatusOr<NodeId> OtherKey(const std::set<std::string>& named, const Place& place);
  absl::StatusOr<NodeId> KeyNotIn(std::vector<std::vector<uint32_t>> names, size_t at);
  // A count that is a whole number, or `absent`.
  absl::StatusOr<int64_t> Count(const Json& schema, const char* name, int64_t absent,
                                const Place& place) const;

  const Json& document_;
  const GrammarLimits& limits_;
  Grammar g_;
  JsonRules json_;
  std::map<std::string, RuleId> rules_;  // by $ref
  std::vector<std::string> pending_;     // refs whose rules have no body yet
  size_t work_ = 0;                      // values looked at and copied, see CopyWork
};

}  // namespace cadre
