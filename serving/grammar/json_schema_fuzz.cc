// The input is a JSON schema. Whatever it is, it is refused or compiled within its limits, and
// walks through its masks go on until the text is whole.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "serving/grammar/fuzz_walk.h"
#include "serving/grammar/json_schema.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  int depth = 0;
  // The front refuses deeper bodies before it parses them.
  auto schema = nlohmann::ordered_json::parse(
      input,
      [&](int at, nlohmann::ordered_json::parse_event_t, nlohmann::ordered_json&) {
        depth = std::max(depth, at);
        return at <= 64;
      },
      false);
  if (!schema.is_discarded() && depth <= 64)
    cadre::FuzzWalk(cadre::ParseJsonSchema(schema), data, size);
  return 0;
}
