#include "serving/http/tool_format.h"

#include <algorithm>

#include "serving/http/json_fields.h"

namespace cadre {
namespace {

NodeId HermesCalls(Grammar& g, const std::vector<ToolNode>& tools, bool parallel) {
  const NodeId call = g.Sequence(
      {g.Bytes("<tool_call>\n"), CallObject(g, tools, "arguments"), g.Bytes("\n</tool_call>")});
  const NodeId more = g.Repeat(g.Sequence({g.Bytes("\n"), call}), 0, -1);
  return parallel ? g.Sequence({call, more}) : call;
}

NodeId Llama3Calls(Grammar& g, const std::vector<ToolNode>& tools, bool parallel) {
  const NodeId call = CallObject(g, tools, "parameters");
  const NodeId more = g.Repeat(g.Sequence({g.Bytes("; "), call}), 0, -1);
  return parallel ? g.Sequence({call, more}) : call;
}

NodeId MistralCalls(Grammar& g, const std::vector<ToolNode>& tools, bool parallel) {
  const NodeId call = CallObject(g, tools, "arguments");
  const NodeId more = g.Repeat(g.Sequence({g.Bytes(", "), call}), 0, -1);
  const NodeId calls = parallel ? g.Sequence({call, more}) : call;
  return g.Sequence({g.Bytes("[TOOL_CALLS] ["), calls, g.Bytes("]")});
}

constexpr ToolFormat kFormats[] = {
    {"hermes", "<tool_call>", false, MakeHermesParser, HermesCalls},
    {"llama3_json", "<|python_tag|>", true, MakeLlama3Parser, Llama3Calls},
    {"mistral", "[TOOL_CALLS]", true, MakeMistralParser, MistralCalls},
};

}  // namespace

const ToolFormat* FindToolFormat(std::string_view name) {
  for (const ToolFormat& format : kFormats) {
    if (format.name == name) return &format;
  }
  return nullptr;
}

const ToolFormat* DetectToolFormat(std::string_view chat_template) {
  const ToolFormat* found = nullptr;
  for (const ToolFormat& format : kFormats) {
    if (chat_template.find(format.template_mark) == std::string_view::npos) continue;
    if (found != nullptr) return nullptr;  // not clear
    found = &format;
  }
  // Llama 3.2's template names no tag; it asks for this form in words.
  const bool words = chat_template.find("\"parameters\": dictionary") != std::string_view::npos;
  return found == nullptr && words ? FindToolFormat("llama3_json") : found;
}

std::string ToolFormatNames() {
  std::string names;
  for (const ToolFormat& format : kFormats) {
    names += names.empty() ? "" : ", ";
    names += format.name;
  }
  return names;
}

size_t JsonEndFinder::Find(std::string_view text) {
  for (; at_ < text.size(); ++at_) {
    const char c = text[at_];
    if (in_string_) {
      in_string_ = escaped_ || c != '"';
      escaped_ = !escaped_ && c == '\\';
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if ((c == '}' || c == ']') && --depth_ <= 0) {
      return at_ + 1;
    }
  }
  return std::string_view::npos;
}

bool ParseToolCall(std::string_view json, ToolCall* call) {
  Json object;
  if (ParseJsonObject(json, &object)) return false;
  const Json name = object.value("name", Json());
  if (!name.is_string() || name == "") return false;
  Json arguments = object.value("arguments", object.value("parameters", Json::object()));
  // Some models spell the arguments as OpenAI does, as JSON inside a string.
  if (arguments.is_string()) {
    Json inner;
    if (ParseJsonObject(arguments.get_ref<const std::string&>(), &inner)) return false;
    arguments = std::move(inner);
  }
  if (!arguments.is_object()) return false;
  call->name = name.get<std::string>();
  call->arguments = arguments.dump();
  return true;
}

size_t BeginsAtEnd(std::string_view text, std::string_view marker) {
  for (size_t size = std::min(text.size(), marker.size() - 1); size > 0; --size) {
    if (text.ends_with(marker.substr(0, size))) return size;
  }
  return 0;
}

NodeId CallObject(Grammar& g, const std::vector<ToolNode>& tools, std::string_view key) {
  std::vector<NodeId> choices;
  for (const ToolNode& tool : tools) {
    choices.push_back(
        g.Sequence({g.Bytes(fmt::format("{{\"name\": {}, \"{}\": ", tool.name_json, key)),
                    tool.arguments, g.Bytes("}")}));
  }
  return g.Choice(std::move(choices));
}

}  // namespace cadre
