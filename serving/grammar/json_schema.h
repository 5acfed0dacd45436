// JSON schemas as grammars: every text of the grammar is JSON that the schema accepts. The other
// way round holds less: where a schema leaves things open, the grammar picks a form.
//
// Supported: true, {}, type (one or a list), enum, const, $ref inside the document (recursion
// included), $defs, definitions, anyOf, oneOf (as anyOf: that exactly one alternative holds is not
// enforced), allOf and sibling keywords (merged, serving/grammar/json_schema_merge.h);
// strings: minLength, maxLength, pattern (serving/grammar/regex.h), format, one of the three kinds
// at a time; integer and number: minimum, maximum, exclusiveMinimum, exclusiveMaximum; arrays:
// items, prefixItems, minItems, maxItems; objects: properties, required, additionalProperties,
// minProperties and maxProperties where no properties are named. Annotations and names that no
// draft defines are ignored; every other keyword is refused by name.
//
// Forms: properties come in the order in which the schema lists them, required ones that it does
// not list behind; an object with `properties` has others only where additionalProperties asks for
// them, with keys that need no escapes; all of prefixItems are written; bounded numbers have no
// exponent.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "serving/grammar/grammar.h"

namespace cadre {

// kInvalidArgument names the place in the schema, as a JSON pointer, and what is wrong there.
absl::StatusOr<Grammar> ParseJsonSchema(const nlohmann::ordered_json& schema,
                                        const GrammarLimits& limits = {});

}  // namespace cadre
