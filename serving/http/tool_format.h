// How models spell tool calls: one format per family, each with a parser (a file of its own,
// tool_parser_*.cc) and the grammar of a forced call. A new one is a line in tool_format.cc.
//
// A parser takes a message's text as it comes and hands out what is certain: text that belongs to
// the message, and whole calls. What looked like a call and is none stays text. The result, put
// together, does not depend on how the text was cut. One thread at a time.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "serving/grammar/grammar.h"

namespace cadre {

struct ToolCall {
  std::string name;
  std::string arguments;  // a JSON object's text
};

struct ToolOutput {
  std::string content;
  std::vector<ToolCall> calls;
};

class ToolParser {
 public:
  virtual ~ToolParser() = default;
  virtual void Push(std::string_view text, ToolOutput* out) = 0;
  virtual void Finish(ToolOutput* out) = 0;
};

// A tool as a grammar needs it: its call's name, spelled as JSON, and the arguments' node.
struct ToolNode {
  std::string name_json;
  NodeId arguments;
};

struct ToolFormat {
  std::string_view name;
  std::string_view template_mark;  // a chat template that has it speaks this format
  bool special_markers;  // its markers are special tokens, which texts leave out otherwise
  std::unique_ptr<ToolParser> (*make_parser)();
  // Texts of one call or, where `parallel`, of several.
  NodeId (*calls)(Grammar& g, const std::vector<ToolNode>& tools, bool parallel);
};

// Null where there is none.
const ToolFormat* FindToolFormat(std::string_view name);
const ToolFormat* DetectToolFormat(std::string_view chat_template);
std::string ToolFormatNames();

// For the parsers.

// Looks for the end of the JSON object or list that a growing text begins with. Brackets are
// counted outside strings; whether it is JSON at all shows when it is parsed.
class JsonEndFinder {
 public:
  // npos: it goes on. Each text begins with the one before.
  size_t Find(std::string_view text);

 private:
  size_t at_ = 0;
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false;
};
// From {"name": ..., "arguments" or "parameters": {...}}; false: it is no call.
bool ParseToolCall(std::string_view json, ToolCall* call);
// How much of the end of `text` may begin `marker`.
size_t BeginsAtEnd(std::string_view text, std::string_view marker);
// {"name": <one of the tools>, "<key>": <its arguments>}
NodeId CallObject(Grammar& g, const std::vector<ToolNode>& tools, std::string_view key);

std::unique_ptr<ToolParser> MakeHermesParser();
std::unique_ptr<ToolParser> MakeLlama3Parser();
std::unique_ptr<ToolParser> MakeMistralParser();

}  // namespace cadre
