// YAML files and --set overrides into protobuf messages, and messages back into YAML.
//
//   config::TrainConfig config;
//   CADRE_RETURN_IF_ERROR(LoadYaml("train.yaml", {"optimizer.lr=1e-4", "data.sources[0].weight=2"},
//                                  &config));
//
// Values merge into the message: mappings field by field, a list replaces the whole list, null
// clears a field back to its default. A single value where a list belongs is a list of one. Enum
// values are their names without the enum's prefix, in lower case. Bounds come from the schema's
// (min) and (max). Defaults are the schema's: a field that is not given reads as its default.
//
// Each error of what is given is kInvalidArgument and one line: file and line (or the override),
// field path, value, what is allowed; a file that is not there is one, too. After an error the message holds some of the values and is of no use. Files are
// taken as hostile: bounds in core/yaml_tree.h. Callable from any thread.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/status.h"

namespace google::protobuf {
class Message;
}

namespace cadre {

// The file, then the overrides in order.
absl::Status LoadYaml(const std::string& path, std::span<const std::string> overrides,
                      google::protobuf::Message* message);

// The same from text; `name` stands where a path would in errors.
absl::Status ParseYaml(std::string_view text, const std::string& name,
                       google::protobuf::Message* message);

// One "path=value" each: `a.b=c`, `a.list[0].c=d`, `a.list=[1, 2]`, `a.map.key=v`. An index equal
// to the list's length appends. The value is YAML, except that a string field takes it as it is
// (unless it is quoted or `null`).
absl::Status ApplyOverrides(std::span<const std::string> overrides,
                            google::protobuf::Message* message);

// The resolved config: every field with a value or a default, in the order of the schema; reading
// it gives the same values. Fields with neither are left out.
std::string DumpYaml(const google::protobuf::Message& message);

}  // namespace cadre
