// Tool calls and thoughts in the text of messages, whole and cut in every way.
#include "serving/http/tool_format.h"

#include <gtest/gtest.h>

#include <random>

#include "serving/grammar/matcher.h"
#include "serving/http/message_parser.h"
#include "serving/http/tool_request.h"

namespace cadre {
namespace {

struct Said {
  std::string reasoning, content;
  std::vector<std::string> calls;  // name and arguments
  bool operator==(const Said&) const = default;
};

void PrintTo(const Said& said, std::ostream* out) {
  *out << "[" << said.reasoning << "|" << said.content << "]";
  for (const std::string& call : said.calls) *out << " " << call;
}

void Add(const MessageParser::Output& out, Said* said) {
  said->reasoning += out.reasoning;
  said->content += out.content;
  for (const ToolCall& call : out.calls) said->calls.push_back(call.name + call.arguments);
}

Said Parse(const MessageFormat& format, const std::string& text) {
  Said whole;
  MessageParser parser(format);
  Add(parser.Push(text, true), &whole);
  // Every way of cutting says the same.
  std::mt19937 random(static_cast<uint32_t>(text.size()));
  for (int round = 0; round < 30; ++round) {
    Said pieces;
    MessageParser cut(format);
    for (size_t at = 0; at < text.size();) {
      const size_t size = round == 0 ? 1 : 1 + random() % 12;
      Add(cut.Push(text.substr(at, size), false), &pieces);
      at += size;
    }
    Add(cut.Push("", true), &pieces);
    EXPECT_EQ(pieces, whole) << text;
  }
  return whole;
}

Said Calls(const char* format, const std::string& text) {
  return Parse({.tools = FindToolFormat(format)}, text);
}

TEST(ToolParsers, Hermes) {
  EXPECT_EQ(Calls("hermes", "no call, 1 < 2 <tool"), (Said{"", "no call, 1 < 2 <tool", {}}));
  EXPECT_EQ(Calls("hermes",
                  "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": "
                  "\"</tool_call>\\\"}\"}}\n</tool_call>\n<tool_call>{\"name\":\"g\"}</tool_call>"),
            (Said{"", "Let me see.", {"f{\"a\":\"</tool_call>\\\"}\"}", "g{}"}}));
  EXPECT_EQ(Calls("hermes", "<tool_call>{\"name\":\"f\"}</tool_call>\n after"),
            (Said{"", "after", {"f{}"}}));
  // The end of the sequence stands for the closing tag.
  EXPECT_EQ(Calls("hermes", "<tool_call>{\"name\":\"f\"}\n</tool"), (Said{"", "", {"f{}"}}));
  for (const char* text :
       {"<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1", "<tool_call>", " <tool_call> f()",
        "a\n<tool_call>{\"name\":3}</tool_call> b", "<tool_call>{}</tool_call>",
        "<tool_call>{\"name\":\"f\"} x</tool_call>", "<tool_call>{]</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>"}) {
    EXPECT_EQ(Calls("hermes", text), (Said{"", text, {}}));
  }
  // A broken one does not hide the next.
  EXPECT_EQ(Calls("hermes", "<tool_call>x<tool_call>{\"name\":\"f\"}</tool_call>"),
            (Said{"", "<tool_call>x", {"f{}"}}));
}

TEST(ToolParsers, Llama3) {
  EXPECT_EQ(Calls("llama3_json", "{\"name\": \"f\", \"parameters\": {\"a\": [1, \"}\"]}}"),
            (Said{"", "", {"f{\"a\":[1,\"}\"]}"}}));
  EXPECT_EQ(Calls("llama3_json", "<|python_tag|>{\"name\":\"f\"}; {\"name\":\"g\"}\n"),
            (Said{"", "", {"f{}", "g{}"}}));
  for (const char* text : {"hello {\"name\":\"f\"}", "{\"x\": 1}", "{\"name\": \"f\"", "<|python",
                           "<|python_tag|>print(1)", "", " "}) {
    EXPECT_EQ(Calls("llama3_json", text), (Said{"", text, {}}));
  }
}

TEST(ToolParsers, Mistral) {
  EXPECT_EQ(Calls("mistral",
                  "Hm[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": \"]\"}}, "
                  "{\"name\": \"g\", \"arguments\": \"{\\\"b\\\": 2}\"}]"),
            (Said{"", "Hm", {"f{\"a\":\"]\"}", "g{\"b\":2}"}}));
  EXPECT_EQ(
      Calls("mistral", "[TOOL_CALLS] [{\"name\":\"f\"}]\n\nok \n[TOOL_CALLS][{\"name\":\"g\"}]\n"),
      (Said{"", "ok \n", {"f{}", "g{}"}}));
  for (const char* text : {"[TOOL", "[TOOL_CALLS] f", "[TOOL_CALLS][]", "[TOOL_CALLS] [{\"name\"",
                           "[TOOL_CALLS][1]", "[] x"}) {
    EXPECT_EQ(Calls("mistral", text), (Said{"", text, {}}));
  }
}

TEST(ToolParsers, OneCallWhereOneIsAllowed) {
  EXPECT_EQ(Parse({.tools = FindToolFormat("llama3_json"), .parallel_calls = false},
                  "{\"name\":\"f\"};{\"name\":\"g\"}"),
            (Said{"", "", {"f{}"}}));
}

TEST(Reasoning, IsSplitFromWhatIsSaid) {
  const MessageFormat free{.reasoning = true}, open{.reasoning = true, .begins_in_reasoning = true};
  EXPECT_EQ(Parse(free, "<think>\nhm \n hm\n</think>\n\nYes. </think>"),
            (Said{"hm \n hm", "Yes. </think>", {}}));
  EXPECT_EQ(Parse(open, "hm</think>Yes"), (Said{"hm", "Yes", {}}));
  EXPECT_EQ(Parse(open, "<think>\nhm</think>Yes"), (Said{"hm", "Yes", {}}));
  EXPECT_EQ(Parse(open, "hm </thi"), (Said{"hm </thi", "", {}}));
  EXPECT_EQ(Parse(open, "</think>\n"), (Said{}));
  EXPECT_EQ(Parse(free, " 1 <think>"), (Said{"", " 1 <think>", {}}));
  EXPECT_EQ(Parse(free, "<thi"), (Said{"", "<thi", {}}));
  EXPECT_EQ(Parse({.reasoning = true, .tools = FindToolFormat("hermes")},
                  "<think><tool_call>no</think><tool_call>{\"name\":\"f\"}</tool_call>"),
            (Said{"<tool_call>no", "", {"f{}"}}));
  EXPECT_EQ(ThinkingAfter("<|assistant|><think>\n"), Thinking::kOpen);
  EXPECT_EQ(ThinkingAfter("<think>\n\n</think>\n\n"), Thinking::kDone);
  EXPECT_EQ(ThinkingAfter("<think>x</think>y"), Thinking::kNone);
  EXPECT_EQ(ThinkingAfter(" "), Thinking::kNone);
  // Of a message that is continued.
  EXPECT_EQ(ThinkingAfter("<|assistant|><think>Let me", "<think>Let me"), Thinking::kOpen);
  EXPECT_EQ(ThinkingAfter("<|assistant|><think>a</think>So", "<think>a</think>So"),
            Thinking::kDone);
  EXPECT_EQ(ThinkingAfter("What is <think>?<|assistant|>It", "It"), Thinking::kNone);
}

TEST(ToolFormats, AreDetectedWhereTheTemplateIsClear) {
  EXPECT_EQ(DetectToolFormat("x <tool_call> y")->name, "hermes");
  EXPECT_EQ(DetectToolFormat("[TOOL_CALLS]")->name, "mistral");
  EXPECT_EQ(DetectToolFormat("<|python_tag|>")->name, "llama3_json");
  EXPECT_EQ(DetectToolFormat("\"parameters\": dictionary of argument")->name, "llama3_json");
  EXPECT_EQ(DetectToolFormat("<tool_call> [TOOL_CALLS]"), nullptr);
  EXPECT_EQ(DetectToolFormat("hello"), nullptr);
}

TEST(ToolFormats, WhatAGrammarForcesTheParserReads) {
  ToolRequest request{
      .choice = ToolRequest::Choice::kForced,
      .tools = {{"f\"g", R"({"properties": {"a": {"type": "integer"}}})"}, {"h", ""}}};
  const std::vector<std::pair<const char*, std::string>> texts = {
      {"hermes",
       "<tool_call>\n{\"name\": \"f\\\"g\", \"arguments\": {\"a\":7}}\n</tool_call>\n"
       "<tool_call>\n{\"name\": \"h\", \"arguments\": {\"x\": []}}\n</tool_call>"},
      {"llama3_json",
       "{\"name\": \"f\\\"g\", \"parameters\": {\"a\":7}}; {\"name\": \"h\", \"parameters\": "
       "{\"x\": []}}"},
      {"mistral",
       "[TOOL_CALLS] [{\"name\": \"f\\\"g\", \"arguments\": {\"a\":7}}, {\"name\": \"h\", "
       "\"arguments\": {\"x\": []}}]"}};
  for (const auto& [name, text] : texts) {
    for (bool parallel : {true, false}) {
      request.parallel = parallel;
      auto grammar = ToolGrammar(request, *FindToolFormat(name));
      ASSERT_TRUE(grammar.ok()) << Message(grammar.status());
      auto automaton = CompileAutomaton(*grammar, {});
      ASSERT_TRUE(automaton.ok()) << Message(automaton.status());
      GrammarWalk walk(*automaton);
      bool fits = true;
      for (char c : text) fits = fits && walk.Step(static_cast<uint8_t>(c));
      EXPECT_EQ(fits && walk.at_end(), parallel) << name;
    }
    EXPECT_EQ(Calls(name, text), (Said{"", "", {"f\"g{\"a\":7}", "h{\"x\":[]}"}}));
  }
  request.tools[0].parameters = R"({"patternProperties": {"a": {}}})";
  EXPECT_EQ(ToolGrammar(request, *FindToolFormat("hermes")).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cadre
