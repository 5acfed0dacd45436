// JSON objects <-> protobuf messages by field name, for files that other programs write: keys
// without a field are passed over, null is absent, a single value stands for a list of one.
// Private to model/.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/status.h"

namespace google::protobuf {
class Message;
}

namespace cadre {

// kInvalidArgument: `file`: key: value (allowed: a type).
absl::Status JsonToMessage(const nlohmann::json& json, const std::string& file,
                           google::protobuf::Message* message);

// Sets a key for each field that is present; other keys, of nested objects too, stay.
void MessageToJson(const google::protobuf::Message& message, nlohmann::json* json);

}  // namespace cadre
