// What differs between two YAML documents, field by field.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre {

struct YamlDifference {
  std::string path;   // data.sources[0].path
  std::string first;  // "nothing" where the field is not there; cut where it is long
  std::string second;
};

// In the order of the first document, then of what the second has alone; a list's elements one by
// one. Errors and bounds as ParseYamlTree's. Callable from any thread.
absl::StatusOr<std::vector<YamlDifference>> CompareYaml(std::string_view first,
                                                        std::string_view second);

}  // namespace cadre
