#include "serving/http/tool_request.h"

#include <algorithm>

#include "serving/grammar/json_schema.h"
#include "serving/http/json_fields.h"

namespace cadre {
namespace {

constexpr size_t kMaxTools = 128;

bool IsToolName(const Json& name) {
  if (!name.is_string()) return false;
  const auto& text = name.get_ref<const std::string&>();
  return !text.empty() && text.size() <= 64 && std::ranges::all_of(text, [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.';
  });
}

// False: `fields` has the error. `bytes`: of the parameters so far.
bool ReadTool(JsonFields* fields, const Json& tool, const std::string& where, size_t* bytes,
              Tool* out) {
  auto fail = [&](const char* message) {
    fields->Fail(fmt::format("{}{}", where, message), "tools");
    return false;
  };
  if (!tool.is_object() || tool.value("type", Json("function")) != "function") {
    return fail(" must be an object of type \"function\"");
  }
  const Json function = tool.value("function", Json());
  if (!function.is_object()) return fail(".function must be an object");
  if (!IsToolName(function.value("name", Json()))) {
    return fail(".function.name must be 1 to 64 characters of [A-Za-z0-9._-]");
  }
  const Json parameters = function.value("parameters", Json());
  if (!parameters.is_null() && !parameters.is_object()) {
    return fail(".function.parameters must be a JSON schema");
  }
  out->name = function["name"].get<std::string>();
  if (!parameters.is_null() && !parameters.empty()) out->parameters = parameters.dump();
  *bytes += out->parameters.size();
  const size_t most = GrammarLimits().max_text_bytes;
  if (*bytes > most) {
    fields->Fail(
        fmt::format("{}: the tools' parameters have more than {} bytes together", where, most),
        "tools");
    return false;
  }
  return true;
}

// Takes the nodes and rules of `other` over; what its root derives.
NodeId Import(const Grammar& other, Grammar& g) {
  const auto first_node = static_cast<NodeId>(g.nodes.size());
  const auto first_rule = static_cast<RuleId>(g.rules.size());
  for (GrammarNode node : other.nodes) {
    if (node.rule >= 0) node.rule += first_rule;
    for (NodeId& child : node.children) child += first_node;
    g.nodes.push_back(std::move(node));
  }
  for (const GrammarRule& rule : other.rules) {
    g.rules.push_back({rule.name, rule.body < 0 ? -1 : rule.body + first_node});
  }
  return g.Rule(first_rule + other.root);
}

// tool_choice, where tools are given.
void ReadChoice(JsonFields* fields, ToolRequest* request) {
  const Json* choice = fields->Get("tool_choice");
  request->choice = ToolRequest::Choice::kAuto;
  if (!choice || *choice == "auto") return;
  if (*choice == "none") {
    request->choice = ToolRequest::Choice::kNone;
    return;
  }
  request->choice = ToolRequest::Choice::kForced;
  if (*choice == "required") return;
  const Json function = choice->is_object() ? choice->value("function", Json()) : Json();
  const Json name = function.is_object() ? function.value("name", Json()) : Json();
  if (!name.is_string()) {
    return fields->Fail(
        "'tool_choice' must be none, auto, required or {\"type\": \"function\", \"function\": "
        "{\"name\": ...}}",
        "tool_choice");
  }
  std::erase_if(request->tools, [&](const Tool& tool) { return name != tool.name; });
  request->parallel = false;
  if (request->tools.empty()) {
    fields->Fail(fmt::format("'tool_choice' names '{}', which is not among 'tools'",
                             name.get<std::string>().substr(0, 100)),
                 "tool_choice");
  }
}

}  // namespace

ToolRequest ReadTools(JsonFields* fields, std::string* prompt_tools) {
  ToolRequest request;
  const Json* tools = fields->Get("tools");
  request.parallel = fields->Bool("parallel_tool_calls").value_or(true);
  if (!tools || *tools == Json::array()) {
    const Json* choice = fields->Get("tool_choice");
    if (choice && *choice != "none" && *choice != "auto") {
      fields->Fail("'tool_choice' needs 'tools'", "tool_choice");
    }
    return request;
  }
  if (!tools->is_array() || tools->size() > kMaxTools) {
    fields->Fail(fmt::format("'tools' must be a list of at most {} tools", kMaxTools), "tools");
    return request;
  }
  size_t bytes = 0;
  for (size_t i = 0; i < tools->size(); ++i) {
    Tool tool;
    const std::string where = fmt::format("tools[{}]", i);
    if (!ReadTool(fields, (*tools)[i], where, &bytes, &tool)) return request;
    request.tools.push_back(std::move(tool));
  }
  ReadChoice(fields, &request);
  if (request.choice != ToolRequest::Choice::kNone) *prompt_tools = tools->dump();
  return request;
}

void ReadToolCalls(JsonFields* fields, const std::string& where, Json* message) {
  auto calls = message->find("tool_calls");
  if (calls == message->end()) return;
  auto fail = [&](const std::string& what, const char* must) {
    fields->Fail(fmt::format("{}{} {}", where, what, must), where + ".tool_calls");
  };
  if (calls->is_null()) {
    message->erase("tool_calls");
    return;
  }
  if (!calls->is_array()) return fail(".tool_calls", "must be a list");
  for (size_t i = 0; i < calls->size(); ++i) {
    Json& call = (*calls)[i];
    const std::string what = fmt::format(".tool_calls[{}]", i);
    if (!call.is_object() || !call.value("function", Json()).is_object()) {
      return fail(what, "must be an object with a function");
    }
    Json& function = call["function"];
    if (!function.value("name", Json()).is_string()) {
      return fail(what, ".function.name must be a string");
    }
    auto arguments = function.find("arguments");
    if (arguments == function.end() || arguments->is_object()) continue;
    Json object = Json::object();
    const bool text = arguments->is_string();
    const bool parsed =
        text &&
        (*arguments == "" || !ParseJsonObject(arguments->get_ref<const std::string&>(), &object));
    if (!parsed) return fail(what, ".function.arguments must be a JSON object's text");
    *arguments = std::move(object);
  }
  if (calls->empty()) message->erase("tool_calls");
}

absl::StatusOr<Grammar> ToolGrammar(const ToolRequest& request, const ToolFormat& format,
                                    const GrammarLimits& limits) {
  Grammar g;
  g.root = g.AddRule("root");
  std::vector<ToolNode> nodes;
  for (const Tool& tool : request.tools) {
    Json schema = tool.parameters.empty() ? Json{{"type", "object"}} : Json::parse(tool.parameters);
    if (!schema.contains("type")) schema["type"] = "object";
    absl::StatusOr<Grammar> arguments = ParseJsonSchema(schema, limits);
    if (!arguments.ok()) {
      return Annotate(arguments.status(), fmt::format("the parameters of '{}'", tool.name));
    }
    nodes.push_back({Json(tool.name).dump(), Import(*arguments, g)});
    CADRE_RETURN_IF_ERROR(g.Check(limits));
  }
  const NodeId body = format.calls(g, nodes, request.parallel);
  g.rules[g.root].body = body;
  return g;
}

}  // namespace cadre
