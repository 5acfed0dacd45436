// Two JSON schemas as one that both must accept: what allOf and keywords beside $ref and anyOf
// mean.
#pragma once

#include <nlohmann/json.hpp>

#include "core/status.h"

namespace cadre {

// Unions of properties (a name in both is merged again), required and annotations; intersections of
// types and enums; the narrower of bounds. kInvalidArgument where two values cannot be one, as two
// patterns. `a` and `b` are objects.
absl::StatusOr<nlohmann::ordered_json> MergeSchemas(const nlohmann::ordered_json& a,
                                                    const nlohmann::ordered_json& b);

// Names that say nothing about what is valid.
bool IsAnnotation(std::string_view keyword);

// What a copy costs: one for each value inside, itself included, and for every 16 bytes of a text
// or a name.
size_t CopyWork(const nlohmann::ordered_json& value);

}  // namespace cadre
