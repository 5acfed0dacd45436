// What a request says about tools: `tools`, `tool_choice`, `parallel_tool_calls`, and the calls in
// its messages. Any thread.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "serving/grammar/grammar.h"
#include "serving/http/tool_format.h"

namespace cadre {

class JsonFields;

struct Tool {
  std::string name;
  std::string parameters;  // a JSON schema's text; empty: any object
};

struct ToolRequest {
  enum class Choice { kNone, kAuto, kForced };
  Choice choice = Choice::kNone;
  std::vector<Tool> tools;  // those that may be called; of a named choice, that one
  bool parallel = true;
};

// `prompt_tools`: the JSON list for the chat template, empty where no tool may be called.
ToolRequest ReadTools(JsonFields* fields, std::string* prompt_tools);

// A message's `tool_calls`, as templates want them: arguments as objects. An error names `where`.
void ReadToolCalls(JsonFields* fields, const std::string& where, nlohmann::ordered_json* message);

// Texts that are calls of the tools in a format and nothing else.
absl::StatusOr<Grammar> ToolGrammar(const ToolRequest& request, const ToolFormat& format,
                                    const GrammarLimits& limits = {});

}  // namespace cadre
