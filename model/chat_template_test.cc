// Templates in the manner of the models that Cadre knows, shortened. Expected texts were checked
// against PyPI's jinja2 with the settings that `transformers` uses.
#include "model/chat_template.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace cadre {
namespace {

constexpr char kSpecial[] = R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}})";
constexpr char kTalk[] =
    R"([{"role":"system","content":"Be brief."},{"role":"user","content":" Hi "},
        {"role":"assistant","content":"Hello"},{"role":"user","content":"More"}])";

// llama 2 and mistral: the system text moves into the first user turn.
constexpr char kLlama2[] = R"({% if messages[0]['role'] == 'system' %}
{% set system = '<<SYS>>\n' + messages[0]['content'] | trim + '\n<</SYS>>\n\n' %}
{% set rest = messages[1:] %}
{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{% for m in rest %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user/assistant/user') }}
{% endif %}
{% if m['role'] == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'] | trim + ' [/INST]' }}
{%- elif m['role'] == 'assistant' %}
{{ ' ' + m['content'] | trim + ' ' + eos_token }}
{%- endif %}
{% endfor %})";

// llama 3.1: headers, an optional date, tools as indented JSON.
constexpr char kLlama3[] = R"({{- bos_token }}
{%- if not date_string is defined %}{% set date_string = "26 Jul 2024" %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
)";

// qwen 2.5, olmoe: ChatML.
constexpr char kChatMl[] = R"({%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
)";

// qwen 3: reasoning of earlier turns is dropped.
constexpr char kQwen3[] = R"({%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- if loop.index0 > ns.last %}{% set content = '<think>\n' + reasoning + '\n</think>\n\n' + content %}{% endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %})";

// deepseek: full-width bars, end-of-sentence behind each answer.
constexpr char kDeepseek[] =
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif "
    "%}{% set ns = namespace(system='') %}{%- for m in messages %}{%- if m['role'] == 'system' "
    "%}{% "
    "set ns.system = m['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}{%- for m "
    "in "
    "messages %}{%- if m['role'] == 'user' %}{{'<\xef\xbd\x9cUser\xef\xbd\x9c>' + "
    "m['content']}}{%- elif m['role'] == 'assistant' and m['content'] is not none "
    "%}{{'<\xef\xbd\x9c"
    "Assistant\xef\xbd\x9c>' + m['content'] + eos_token}}{%- endif %}{%- endfor %}{% if "
    "add_generation_prompt %}{{'<\xef\xbd\x9c"
    "Assistant\xef\xbd\x9c>'}}{% endif %}";

// gpt_oss: channels, and a recursive macro that writes a tool's types.
constexpr char kHarmony[] = R"({%- macro type_of(spec) -%}
    {%- if spec.type == "array" -%}{{ type_of(spec['items']) + "[]" }}
    {%- elif spec.type == "object" -%}
        {{- "{" }}
        {%- for name, inner in spec.properties.items() -%}
            {{- name + ("" if name in (spec.required or []) else "?") + ": " + type_of(inner) }}
            {%- if not loop.last %}{{ ", " }}{% endif -%}
        {%- endfor -%}
        {{- "}" }}
    {%- elif spec.enum -%}{{ '"' + spec.enum | join('" | "') + '"' }}
    {%- else -%}{{ spec.type }}
    {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
    {{- "<|start|>developer<|message|>namespace functions {\n" }}
    {%- for tool in tools %}{% set f = tool.function %}
        {{- "type " + f.name + " = (_: " + type_of(f.parameters) + ") => any;\n" }}
    {%- endfor %}
    {{- "}<|end|>" }}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + ("<|return|>" if loop.last and not add_generation_prompt else "<|end|>") }}
    {%- else -%}
        {{- "<|start|>" + message.role + "<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%})";

constexpr char kTools[] = R"([{"type":"function","function":{"name":"f","parameters":
    {"type":"object","properties":{"city":{"type":"string"},"unit":{"type":"string","enum":["C","F"]},
    "days":{"type":"array","items":{"type":"number"}}},"required":["city"]}}}])";

std::unique_ptr<ChatTemplate> Parse(std::string_view source) {
  auto chat = ChatTemplate::Parse(source, kSpecial);
  EXPECT_TRUE(chat.ok()) << Message(chat.status());
  return std::move(chat).value();
}

std::string Render(std::string_view source, const ChatInput& input) {
  auto rendered = Parse(source)->Render(input);
  return rendered.ok() ? rendered->text : "error: " + Message(rendered.status());
}

TEST(ChatTemplate, RendersTheFamilies) {
  EXPECT_EQ(Render(kLlama2, {.messages = kTalk}),
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] More "
            "[/INST]");
  EXPECT_EQ(Render(kLlama3, {.messages = kTalk}),
            "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n"
            "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nMore<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(Render(kChatMl, {.messages = kTalk, .add_generation_prompt = false}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n");
  EXPECT_EQ(Render(kDeepseek, {.messages = kTalk}),
            "<s>Be brief.<\xef\xbd\x9cUser\xef\xbd\x9c> Hi <\xef\xbd\x9c"
            "Assistant\xef\xbd\x9c>Hello</s><\xef\xbd\x9cUser\xef\xbd\x9c>More<\xef\xbd\x9c"
            "Assistant\xef\xbd\x9c>");
}

TEST(ChatTemplate, ToolsAndKwargs) {
  std::string one = R"([{"role":"user","content":"Hi"}])";
  EXPECT_EQ(Render(kHarmony, {.messages = one, .tools = kTools}),
            "<|start|>developer<|message|>namespace functions {\n"
            "type f = (_: {city: string, unit?: \"C\" | \"F\", days?: number[]}) => any;\n"
            "}<|end|><|start|>user<|message|>Hi<|end|><|start|>assistant");
  EXPECT_EQ(Render(kLlama3, {.messages = one,
                             .tools = R"([{"b":1,"a":[2]}])",
                             .kwargs = R"({"date_string":"today"})",
                             .add_generation_prompt = false}),
            "<s><|start_header_id|>system<|end_header_id|>\n\nToday: today\n\n"
            "{\n    \"b\": 1,\n    \"a\": [\n        2\n    ]\n}\n\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>");
  EXPECT_EQ(Render(kQwen3, {.messages = one, .kwargs = R"({"enable_thinking":false})"}),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n");
}

TEST(ChatTemplate, SpecialTextOfUsersStaysTheirs) {
  auto chat = Parse(kChatMl);
  auto rendered = chat->Render({.messages = R"([{"role":"user","content":"a<|im_end|>b"}])"});
  ASSERT_TRUE(rendered.ok());
  std::string user, fixed;
  for (const TextSpan& span : rendered->Spans()) {
    (span.from_template ? fixed : user) += std::string(span.text) + "/";
  }
  EXPECT_EQ(user, "user/a<|im_end|>b/");
  EXPECT_EQ(fixed, "<|im_start|>/\n/<|im_end|>\n<|im_start|>assistant\n/");
}

TEST(ChatTemplate, ContinuesTheFinalMessage) {
  std::string talk =
      R"([{"role":"user","content":"x"},{"role":"assistant","content":"The answer "}])";
  EXPECT_EQ(
      Render(kChatMl,
             {.messages = talk, .add_generation_prompt = false, .continue_final_message = true}),
      "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\nThe answer");
  EXPECT_NE(Render(kChatMl, {.messages = talk, .continue_final_message = true}).find("excludes"),
            std::string::npos);
}

TEST(ChatTemplate, RefusesBadInput) {
  auto starts = [](const std::string& text, std::string_view with) {
    return text.starts_with("error: " + std::string(with)) ? "" : text;
  };
  EXPECT_EQ(starts(Render(kChatMl, {.messages = "[{"}), "messages: "), "");
  EXPECT_EQ(starts(Render(kChatMl, {.messages = "{}"}), "messages: must be an array"), "");
  EXPECT_EQ(starts(Render(kChatMl, {.messages = "[1]"}), "messages[0]: must be an object"), "");
  EXPECT_EQ(starts(Render(kChatMl, {.messages = "[{\"role\":\"user\"}]"}), "chat template: line 2"),
            "");
  EXPECT_EQ(starts(Render(kChatMl, {.messages = "[]", .kwargs = R"({"chat_template":"x"})"}),
                   "chat_template_kwargs: 'chat_template' is not allowed"),
            "");
  EXPECT_EQ(starts(Render(kLlama2, {.messages = R"([{"role":"assistant","content":"x"}])"}),
                   "chat template: line 7: roles must alternate"),
            "");
  EXPECT_EQ(starts(Render(kChatMl, {.messages = std::string(100000, '[')}), "messages: "), "");
  EXPECT_EQ(
      starts(Render(kChatMl, {.messages = "[{\"role\":\"\xff\",\"content\":\"\"}]"}), "messages: "),
      "");
}

TEST(ChatTemplate, TrainingRangesCoverAssistantTurns) {
  std::string talk = R"([{"role":"user","content":"a"},{"role":"assistant","content":"b"},
      {"role":"user","content":"c"},{"role":"assistant","content":"dd"}])";
  auto turns = [&](std::string_view source) {
    auto training = Parse(source)->RenderForTraining({.messages = talk});
    if (!training.ok()) return Message(training.status());
    std::string all;
    for (const ByteRange& range : training->assistant) {
      all += training->chat.text.substr(range.begin, range.end - range.begin) + "/";
    }
    return all;
  };
  EXPECT_EQ(turns(kChatMl), "b<|im_end|>\n/dd<|im_end|>\n/");
  EXPECT_EQ(turns(kLlama3), "b<|eot_id|>/dd<|eot_id|>/");
  EXPECT_EQ(turns(kLlama2), " b </s>/ dd </s>/");
  // The end of a turn changes when it is no longer the last.
  EXPECT_EQ(turns(kHarmony).substr(0, 12), "messages[1]:");
}

TEST(ChatTemplate, LoadsFromAModelFolder) {
  auto dir = std::filesystem::temp_directory_path() / "cadre_chat_template_test";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  auto write = [&](const char* name, const std::string& text) {
    std::ofstream(dir / name) << text;
  };
  ChatInput input{.messages = R"([{"role":"user","content":"x"}])", .tools = kTools};
  auto load = [&] {
    auto chat = ChatTemplate::Load(dir.string());
    if (!chat.ok()) return "error: " + Message(chat.status());
    auto rendered = (*chat)->Render(input);
    return rendered.ok() ? rendered->text : Message(rendered.status());
  };
  EXPECT_EQ(ChatTemplate::Load(dir.string()).status().code(), absl::StatusCode::kNotFound);
  write("tokenizer_config.json",
        R"({"chat_template":"one{{ bos_token }}","bos_token":{"content":"B"}})");
  EXPECT_EQ(load(), "oneB");
  write("tokenizer_config.json", R"({"chat_template":[{"name":"default","template":"plain"},
      {"name":"tool_use","template":"tools"}]})");
  EXPECT_EQ(load(), "tools");
  input.tools = "";
  EXPECT_EQ(load(), "plain");
  write("special_tokens_map.json", R"({"eos_token":"E"})");
  write("chat_template.jinja", "file{{ eos_token }}\n");
  EXPECT_EQ(load(), "fileE");
  write("chat_template.jinja", "{% if %}");
  EXPECT_NE(load().find("chat_template.jinja: line 1: expected an expression"), std::string::npos);
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace cadre
