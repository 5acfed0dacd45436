// Forms of texts, tools and thoughts over HTTP. The engine says what it is told to, as far as the
// request's grammar allows.
#include <gtest/gtest.h>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

class StructuredAnswerTest : public HttpServerTest {
 protected:
  void StartWith(const char* tools, const char* reasoning, const char* prompt_end = "") {
    server_.reset();
    chat_ = *ChatTemplate::Parse(
        std::string("{% for m in messages %}<|start|>{{ m.role }}:{{ m.content }}{% for c in "
                    "m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.a }}]"
                    "{% endfor %}<|end|>{% endfor %}{% for t in tools or [] %}{{ t.function.name }}"
                    "{% endfor %}<|start|>") +
        prompt_end);
    HttpServerOptions options;
    options.service.tool_call_parser = tools;
    options.service.reasoning_parser = reasoning;
    Start(std::move(options));
  }
  Json Message(Json extra) {
    const Reply reply = Chat(std::move(extra));
    EXPECT_EQ(reply.status, 200) << reply.body;
    return reply.json()["choices"][0];
  }
  // What a stream's deltas come to; checks their order.
  Json Streamed(Json extra) {
    extra["stream"] = true;
    Json message = {{"content", ""}, {"tool_calls", Json::array()}};
    Json finish;
    for (const Json& event : Events(Chat(std::move(extra)))) {
      if (!event.is_object()) continue;
      const Json& choice = event["choices"][0];
      const Json& delta = choice["delta"];
      message["content"] = message["content"].get<std::string>() + delta.value("content", "");
      if (delta.contains("reasoning_content")) {
        message["reasoning_content"] =
            message.value("reasoning_content", "") + delta["reasoning_content"].get<std::string>();
      }
      for (const Json& part : delta.value("tool_calls", Json::array())) {
        Json& calls = message["tool_calls"];
        const size_t index = part["index"];
        if (part.contains("id")) {
          EXPECT_EQ(index, calls.size());
          calls.push_back(part);
          calls.back().erase("index");
        } else {
          std::string& arguments = calls[index]["function"]["arguments"].get_ref<std::string&>();
          arguments += part["function"]["arguments"].get<std::string>();
        }
      }
      if (!choice["finish_reason"].is_null()) finish = choice["finish_reason"];
    }
    if (message["tool_calls"].empty()) {
      message.erase("tool_calls");
    } else if (message["content"] == "") {
      message["content"] = nullptr;
    }
    message["role"] = "assistant";
    return {{"message", message}, {"finish_reason", finish}};
  }
  void ExpectSame(const Json& whole, const Json& streamed) {
    Json a = whole["message"], b = streamed["message"];
    // Ids name the answer, which differs.
    for (Json* message : {&a, &b}) {
      if (!message->contains("tool_calls")) continue;
      for (Json& call : (*message)["tool_calls"]) {
        EXPECT_EQ(call["id"].get<std::string>().size(), 9u);
        call.erase("id");
      }
    }
    EXPECT_EQ(a, b);
    EXPECT_EQ(whole["finish_reason"], streamed["finish_reason"]);
  }
};

const Json kTools = {
    {{"type", "function"},
     {"function",
      {{"name", "f"}, {"parameters", {{"properties", {{"a", {{"type", "integer"}}}}}}}}}},
    {{"type", "function"}, {"function", {{"name", "g"}}}}};

TEST_F(StructuredAnswerTest, TextsAreOfTheFormAskedFor) {
  engine_.SetReply("Sure! {\"a\": x12, \"b\": [true]} or abab");
  const Json schema = {{"type", "object"}, {"properties", {{"a", {{"type", "integer"}}}}}};
  const std::vector<std::pair<Json, std::string>> cases = {
      {{{"response_format", {{"type", "text"}}}}, "Sure! {\"a\": x12, \"b\": [true]} or abab"},
      {{{"response_format", {{"type", "json_object"}}}}, "{\"a\": 12, \"b\": [true]} "},
      {{{"response_format", {{"type", "json_schema"}, {"json_schema", {{"schema", schema}}}}}},
       "{\"a\": 12 }"},
      {{{"response_format", {{"type", "json_object"}, {"schema", schema}}}}, "{\"a\": 12 }"},
      {{{"guided_json", schema}}, "{\"a\": 12 }"},
      {{{"guided_json", schema.dump()}}, "{\"a\": 12 }"},
      {{{"json_schema", schema}}, "{\"a\": 12 }"},
      {{{"structured_outputs", {{"json", schema}}}}, "{\"a\": 12 }"},
      {{{"guided_regex", "(ab)*"}}, "ababab"},
      {{{"structured_outputs", {{"regex", "[a-z]{3}"}}}}, "ure"},
      {{{"guided_choice", {"yes", "ab", "bar"}}}, "ab"},
      {{{"grammar", "root ::= [0-9]+"}}, "12"},
      {{{"guided_grammar", "root ::= \"t\" root | \"\""}}, "t"}};
  for (const auto& [extra, text] : cases) {
    std::string expected = text;
    while (expected.ends_with(' ')) expected.pop_back();
    std::string got = Message(extra)["message"]["content"];
    while (got.ends_with(' ')) got.pop_back();
    EXPECT_EQ(got, expected) << extra;
    if (extra.contains("response_format")) continue;
    got = Complete(extra).json()["choices"][0]["text"];
    while (got.ends_with(' ')) got.pop_back();
    EXPECT_EQ(got, expected) << extra;
  }
}

TEST_F(StructuredAnswerTest, ToolCallsWholeAndStreamed) {
  StartWith("hermes", "none");
  engine_.SetReply(
      "Let me.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 7}}\n</tool_call>\n"
      "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>");
  Json choice = Message({{"tools", kTools}});
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_EQ(choice["message"]["content"], "Let me.");
  ASSERT_EQ(choice["message"]["tool_calls"].size(), 2u);
  EXPECT_EQ(choice["message"]["tool_calls"][0]["function"],
            (Json{{"name", "f"}, {"arguments", "{\"a\":7}"}}));
  EXPECT_EQ(choice["message"]["tool_calls"][0]["type"], "function");
  ExpectSame(choice, Streamed({{"tools", kTools}}));
  choice = Message({{"tools", kTools}, {"parallel_tool_calls", false}});
  EXPECT_EQ(choice["message"]["tool_calls"].size(), 1u);
  // Forced, the text before the call goes.
  for (const Json& forced :
       {Json("required"), Json{{"type", "function"}, {"function", {{"name", "f"}}}}}) {
    const Json body = {{"tools", kTools}, {"tool_choice", forced}};
    choice = Message(body);
    EXPECT_EQ(choice["message"]["content"], nullptr);
    EXPECT_EQ(choice["message"]["tool_calls"].size(), forced == "required" ? 2u : 1u);
    EXPECT_EQ(choice["finish_reason"], "tool_calls");
    ExpectSame(choice, Streamed(body));
  }
  // Not asked for, it is text.
  choice = Message({{"tools", kTools}, {"tool_choice", "none"}});
  EXPECT_TRUE(choice["message"]["content"].get<std::string>().ends_with("</tool_call>"));
  EXPECT_EQ(choice["finish_reason"], "stop");
  engine_.SetReply("<tool_call>{\"name\": 3}</tool_call>");
  choice = Message({{"tools", kTools}});
  EXPECT_EQ(choice["message"]["content"], "<tool_call>{\"name\": 3}</tool_call>");
  EXPECT_EQ(choice["finish_reason"], "stop");
}

TEST_F(StructuredAnswerTest, TheTemplateSeesToolsCallsAndResults) {
  StartWith("hermes", "none");
  const Json history = {{{"role", "user"}, {"content", "q"}},
                        {{"role", "assistant"},
                         {"content", nullptr},
                         {"tool_calls",
                          {{{"id", "x"},
                            {"type", "function"},
                            {"function", {{"name", "f"}, {"arguments", "{\"a\": 7}"}}}}}}},
                        {{"role", "tool"}, {"tool_call_id", "x"}, {"content", "9"}}};
  ASSERT_EQ(Chat({{"messages", history}, {"tools", kTools}}).status, 200);
  const std::vector<std::vector<int32_t>> prompts = engine_.prompts();
  std::string prompt;
  for (int32_t id : prompts.back()) prompt += id < 256 ? static_cast<char>(id) : '#';
  EXPECT_EQ(prompt, "#user:q##assistant:[f 7]##tool:9#fg#");
}

TEST_F(StructuredAnswerTest, ThoughtsAreSplitOffAndFormsBeginBehindThem) {
  StartWith("none", "think");
  engine_.SetReply("<think>\nhm {\n</think>\n\nno {\"a\": 1}");
  Json choice = Message(Json::object());
  EXPECT_EQ(choice["message"]["reasoning_content"], "hm {");
  EXPECT_EQ(choice["message"]["content"], "no {\"a\": 1}");
  ExpectSame(choice, Streamed(Json::object()));
  const Json form = {{"response_format", {{"type", "json_object"}}}};
  choice = Message(form);
  EXPECT_EQ(choice["message"]["reasoning_content"], "hm {");
  EXPECT_EQ(choice["message"]["content"], "{\"a\": 1}");
  ExpectSame(choice, Streamed(form));
  // The prompt opens the tag, or has thoughts behind it already.
  StartWith("none", "think", "<think>");
  engine_.SetReply("hm</think>no {\"a\": 1}");
  choice = Message(form);
  EXPECT_EQ(choice["message"]["reasoning_content"], "hm");
  EXPECT_EQ(choice["message"]["content"], "{\"a\": 1}");
  StartWith("none", "think", "<think></think>");
  engine_.SetReply("<think>{}");
  choice = Message(form);
  EXPECT_FALSE(choice["message"].contains("reasoning_content"));
  EXPECT_EQ(choice["message"]["content"], "{}");
}

// Pieces of a text field over a stream's events.
std::string Joined(const std::vector<std::pair<std::string, Json>>& events, const char* type,
                   const char* field) {
  std::string text;
  for (const auto& [name, data] : events) {
    const Json& delta = data.contains("delta") ? data["delta"] : data;
    if (delta.is_object() && delta.value("type", "") == type) text += delta[field];
    if (delta.is_string() && name == type) text += delta;
  }
  return text;
}

// What a model writes, its thoughts and its text; nothing where there are none.
struct Thoughtful {
  const char *reply, *reasoning, *content;
  int max_tokens = 100;
};
const Thoughtful kThoughtful[] = {{"<think>\nhm {\n</think>\n\nno", "hm {", "no"},
                                  {"<think>hm</think>", "hm", ""},
                                  {"<think>hm mm", "hm m", "", 11},
                                  {"<think></think>no", "", "no"},
                                  {"no <think>", "", "no <think>"},
                                  {"", "", ""}};

TEST_F(StructuredAnswerTest, MessagesHaveThoughtsInABlockOfTheirOwn) {
  StartWith("none", "think");
  for (const Thoughtful& one : kThoughtful) {
    engine_.SetReply(one.reply);
    Json body = {{"model", "tiny"},
                 {"max_tokens", one.max_tokens},
                 {"messages", {{{"role", "user"}, {"content", "hi"}}}}};
    const Json content = Post("/v1/messages", body).json()["content"];
    Json expected = Json::array();
    if (*one.reasoning != 0) {
      expected.push_back({{"type", "thinking"}, {"thinking", one.reasoning}, {"signature", ""}});
    }
    if (*one.content != 0 || expected.empty()) {
      expected.push_back({{"type", "text"}, {"text", one.content}});
    }
    EXPECT_EQ(content, expected) << one.reply;
    body["stream"] = true;
    const auto events = NamedEvents(Post("/v1/messages", body));
    Json streamed = Json::array();
    size_t stopped = 0;
    for (const auto& [name, data] : events) {
      if (name == "content_block_start") {
        EXPECT_EQ(data["index"], streamed.size());
        EXPECT_EQ(stopped, streamed.size());
        streamed.push_back(data["content_block"]);
      } else if (name == "content_block_stop") {
        EXPECT_EQ(data["index"], stopped++);
      } else if (name == "content_block_delta") {
        EXPECT_EQ(data["index"], stopped);
        const char* field = data["delta"]["type"] == "text_delta" ? "text" : "thinking";
        Json& text = streamed.back()[field];
        text = text.get<std::string>() + data["delta"][field].get<std::string>();
      }
    }
    EXPECT_EQ(stopped, streamed.size());
    EXPECT_EQ(streamed, content) << one.reply;
    EXPECT_EQ(Joined(events, "thinking_delta", "thinking"), one.reasoning);
  }
}

TEST_F(StructuredAnswerTest, ResponsesHaveThoughtsInAnItemOfTheirOwn) {
  StartWith("none", "think");
  for (const Thoughtful& one : kThoughtful) {
    engine_.SetReply(one.reply);
    Json body = {{"input", "hi"}, {"max_output_tokens", one.max_tokens}};
    const Json whole = Post("/v1/responses", body).json();
    const Json& output = whole["output"];
    const bool reasons = *one.reasoning != 0;
    const bool speaks = *one.content != 0 || !reasons;
    ASSERT_EQ(output.size(), static_cast<size_t>(reasons + speaks)) << whole;
    if (reasons) {
      EXPECT_EQ(output[0]["type"], "reasoning");
      EXPECT_EQ(output[0]["id"].get<std::string>().substr(0, 3), "rs_");
      EXPECT_EQ(output[0]["summary"], Json::array());
      EXPECT_EQ(output[0]["status"], speaks ? Json("completed") : whole["status"]);
      EXPECT_EQ(output[0]["content"],
                (Json{{{"type", "reasoning_text"}, {"text", one.reasoning}}}));
    }
    if (speaks) {
      EXPECT_EQ(output.back()["type"], "message");
      EXPECT_EQ(output.back()["content"][0]["text"], one.content);
    }
    body["stream"] = true;
    const auto events = NamedEvents(Post("/v1/responses", body));
    EXPECT_EQ(Joined(events, "response.reasoning_text.delta", ""), one.reasoning);
    EXPECT_EQ(Joined(events, "response.output_text.delta", ""), one.content);
    Json items = Json::array();
    for (size_t i = 0; i < events.size(); ++i) {
      EXPECT_EQ(events[i].second["sequence_number"], i);
      if (events[i].first == "response.output_item.done") items.push_back(events[i].second["item"]);
    }
    Json streamed = events.back().second["response"];
    EXPECT_EQ(items, streamed["output"]);
    // Ids name the answer, which differs.
    Json expected = output;
    for (Json* list : {&expected, &streamed["output"]}) {
      for (Json& item : *list) item.erase("id");
    }
    EXPECT_EQ(streamed["output"], expected);
    EXPECT_EQ(streamed["usage"], whole["usage"]);
  }
}

TEST_F(StructuredAnswerTest, TokensOfThoughtsAreCounted) {
  StartWith("none", "think");
  const std::pair<const char*, int> replies[] = {
      {"<think>hm</think>no", 17}, {"<think>hm", 10}, {"no", 0}, {"<thin", 0}};
  for (const auto& [reply, tokens] : replies) {
    engine_.SetReply(reply);
    const Json usage = Post("/v1/responses", {{"input", "hi"}}).json()["usage"];
    EXPECT_EQ(usage["output_tokens_details"]["reasoning_tokens"], tokens) << reply;
    const Json chat = Chat().json()["usage"];
    EXPECT_EQ(chat.contains("completion_tokens_details"), tokens > 0);
    if (tokens == 0) continue;
    EXPECT_EQ(chat["completion_tokens_details"]["reasoning_tokens"], tokens);
  }
  StartWith("none", "think", "<think>");  // the prompt opens the tag
  engine_.SetReply("hm</think>no");
  const Json usage = Post("/v1/responses", {{"input", "hi"}}).json()["usage"];
  EXPECT_EQ(usage["output_tokens_details"]["reasoning_tokens"], 10);
}

TEST_F(StructuredAnswerTest, ThoughtsOfEarlierTurnsComeBackAndAreLeftOut) {
  StartWith("none", "think");
  const Json thought = {{"type", "thinking"}, {"thinking", "hm"}, {"signature", ""}};
  const Json said = {{"type", "text"}, {"text", "no"}};
  const Json user = {{"role", "user"}, {"content", "q"}};
  const Json assistant = {{"role", "assistant"}, {"content", {thought, said}}};
  ASSERT_EQ(Post("/v1/messages",
                 {{"model", "tiny"}, {"max_tokens", 5}, {"messages", {user, assistant, user}}})
                .status,
            200);
  const Json reasoning = {{"type", "reasoning"}, {"id", "rs_1"}, {"summary", Json::array()}};
  const Json answer = {{"role", "assistant"}, {"content", "no"}};
  ASSERT_EQ(Post("/v1/responses", {{"input", {user, reasoning, answer, user}}}).status, 200);
  const std::vector<std::vector<int32_t>> prompts = engine_.prompts();
  EXPECT_EQ(prompts[0], prompts[1]);
}

TEST_F(StructuredAnswerTest, SchemasOfToolsAreRefusedByName) {
  StartWith("hermes", "none");
  auto ask = [&](Json parameters, const char* choice) {
    const Json tool = {{"type", "function"},
                       {"function", {{"name", "f"}, {"parameters", std::move(parameters)}}}};
    return Chat({{"tools", {tool}}, {"tool_choice", choice}}).json();
  };
  Json names = Json::array();
  for (int i = 0; i < 2000; ++i) names.push_back(std::to_string(i));
  const Json large = {{"enum", {std::string(size_t{1} << 18, 'x')}}};
  const std::pair<Json, const char*> bad[] = {
      {{{"properties", {{"a", {{"not", {{"type", "null"}}}}}}}}, "'not'"},
      {{{"properties", {{"a", {{"type", "no"}}}}}}, "'type'"},
      {{{"required", names}}, "'required'"},
      {{{"type", "array"}, {"maxItems", 1000000000000}}, "the grammar is too large"},
      {large, "262144 bytes"}};
  for (const auto& [parameters, said] : bad) {
    const Json body = ask(parameters, "required");
    EXPECT_EQ(body["error"]["param"], "tools") << body;
    EXPECT_NE(body["error"]["message"].get<std::string>().find(said), std::string::npos) << body;
  }
  EXPECT_EQ(ask(3, "auto")["error"]["param"], "tools");
  EXPECT_EQ(ask(large, "auto")["error"]["param"], "tools");
  // The bound is on all together.
  Json tools = Json::array();
  for (const char* name : {"f", "g"}) {
    const Json parameters = {{"description", std::string(size_t{200} << 10, 'x')}};
    tools.push_back(
        {{"type", "function"}, {"function", {{"name", name}, {"parameters", parameters}}}});
  }
  EXPECT_EQ(Chat({{"tools", tools}}).json()["error"]["param"], "tools");
  EXPECT_EQ(Chat().status, 200);
}

}  // namespace
}  // namespace cadre
