#include "model/chat_template.h"

#include <ctime>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "model/gguf_model.h"
#include "model/jinja_eval.h"
#include "model/jinja_parser.h"

namespace cadre {
namespace {

using jinja::Dict;
using jinja::Origin;
using jinja::Text;
using jinja::Value;

constexpr std::string_view kReserved[] = {"messages", "tools", "add_generation_prompt",
                                          "continue_final_message", "chat_template"};
constexpr std::string_view kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                               "pad_token", "cls_token", "mask_token"};

absl::StatusOr<std::optional<std::string>> ReadIfPresent(const std::string& path) {
  constexpr uintmax_t kMaxFile = uintmax_t{64} << 20;
  std::error_code error;
  uintmax_t size = std::filesystem::file_size(path, error);
  if (error == std::errc::no_such_file_or_directory) return std::optional<std::string>();
  if (error) return NotFound("{}: {}", path, error.message());
  if (size > kMaxFile) return InvalidArgument("{}: {} bytes, at most {}", path, size, kMaxFile);
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return NotFound("{}: cannot be read", path);
  return std::optional<std::string>(std::move(text).str());
}

absl::StatusOr<Dict> ReadObject(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(std::optional<std::string> text, ReadIfPresent(path));
  if (!text) return Dict();
  CADRE_ASSIGN_OR_RETURN(Value value, jinja::ParseJson(*text, path));
  if (!value.as_dict()) return InvalidArgument("{}: must be a JSON object", path);
  return *value.as_dict();
}

// A special token is a string or an object whose "content" is one. Its text is the template's.
std::optional<Value> SpecialToken(const Value& value) {
  const Value* content = value.as_dict() ? value.as_dict()->Find("content") : &value;
  if (!content || !content->as_text()) return std::nullopt;
  return Value::Of(Text(content->as_text()->bytes(), Origin::kTemplate));
}

void AddSpecialTokens(const Dict& source, Dict* names) {
  for (std::string_view name : kSpecialTokens) {
    const Value* value = source.Find(name);
    if (!value || names->Find(name)) continue;
    if (std::optional<Value> token = SpecialToken(*value)) {
      names->Set(Text(std::string(name), Origin::kTemplate), *token);
    }
  }
}

absl::StatusOr<std::vector<Value>> ParseList(const std::string& json, std::string_view what) {
  CADRE_ASSIGN_OR_RETURN(Value value, jinja::ParseJson(json, what));
  if (!value.as_list()) return InvalidArgument("{}: must be an array", what);
  return *value.as_list();
}

absl::StatusOr<std::vector<Value>> ParseMessages(const std::string& json) {
  CADRE_ASSIGN_OR_RETURN(std::vector<Value> messages, ParseList(json, "messages"));
  for (size_t i = 0; i < messages.size(); ++i) {
    const Dict* message = messages[i].as_dict();
    const Value* role = message ? message->Find("role") : nullptr;
    if (!role || !role->as_text()) {
      return InvalidArgument("messages[{}]: must be an object with a string 'role'", i);
    }
  }
  return messages;
}

std::string_view Role(const Value& message) {
  return message.as_dict()->Find("role")->as_text()->view();
}

// Cuts the text behind the last message's content, which the model is to continue.
absl::StatusOr<Text> CutAtFinalContent(const Text& text, const std::vector<Value>& messages) {
  const Value* content = messages.empty() ? nullptr : messages.back().as_dict()->Find("content");
  if (!content || !content->as_text()) {
    return InvalidArgument("continue_final_message: the last message has no text to continue");
  }
  Text wanted = jinja::Strip(*content->as_text(), jinja::Side::kBoth, std::nullopt);
  size_t at = text.view().rfind(wanted.view());
  if (at == std::string_view::npos) {
    return InvalidArgument(
        "continue_final_message: the template does not show the last message's content");
  }
  return text.Slice(0, at + wanted.size());
}

RenderedChat ToRendered(const Text& text) {
  RenderedChat rendered{.text = text.bytes(), .runs = {}};
  for (const Text::Run& run : text.runs()) {
    rendered.runs.push_back({run.end, run.origin == Origin::kTemplate});
  }
  return rendered;
}

}  // namespace

struct ChatTemplate::Parts {
  std::string source;
  jinja::Body body;
  std::optional<jinja::Body> with_tools;  // the named template "tool_use"
  Dict special_tokens;

  absl::StatusOr<Text> Run(Dict names, std::vector<Value> messages, bool generation_prompt,
                           int64_t now) const;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
ChatTemplate::~ChatTemplate() = default;
const std::string& ChatTemplate::source() const { return parts_->source; }

std::vector<TextSpan> RenderedChat::Spans() const {
  std::vector<TextSpan> spans;
  size_t begin = 0;
  for (const Run& run : runs) {
    spans.push_back({std::string_view(text).substr(begin, run.end - begin), run.from_template});
    begin = run.end;
  }
  return spans;
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source,
                                                                  std::string_view special_tokens) {
  auto parts = std::make_unique<Parts>();
  parts->source = source;
  absl::StatusOr<jinja::Body> body = jinja::ParseTemplate(source);
  if (!body.ok()) return Annotate(body.status(), "chat template");
  parts->body = *std::move(body);
  if (!special_tokens.empty()) {
    CADRE_ASSIGN_OR_RETURN(Value value, jinja::ParseJson(special_tokens, "special tokens"));
    if (!value.as_dict()) return InvalidArgument("special tokens: must be a JSON object");
    AddSpecialTokens(*value.as_dict(), &parts->special_tokens);
  }
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(parts)));
}

namespace {

absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadOfGguf(const std::string& path,
                                                         const std::string& other_file) {
  CADRE_ASSIGN_OR_RETURN(const GgufFile gguf, GgufFile::Open(path));
  CADRE_ASSIGN_OR_RETURN(GgufChat chat, GgufChatOf(gguf));
  if (!other_file.empty()) {
    CADRE_ASSIGN_OR_RETURN(std::optional<std::string> file, ReadIfPresent(other_file));
    if (!file) return NotFound("{}: no such file", other_file);
    chat.source = *std::move(file);
  }
  if (chat.source.empty()) return NotFound("{}: tokenizer.chat_template is missing", path);
  return ChatTemplate::Parse(chat.source, chat.special_tokens);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::string& model_dir,
                                                                 const std::string& other_file) {
  if (IsGguf(model_dir)) return LoadOfGguf(model_dir, other_file);
  std::string config_path = model_dir + "/tokenizer_config.json";
  std::string file_path = other_file.empty() ? model_dir + "/chat_template.jinja" : other_file;
  CADRE_ASSIGN_OR_RETURN(Dict config, ReadObject(config_path));
  CADRE_ASSIGN_OR_RETURN(Dict map, ReadObject(model_dir + "/special_tokens_map.json"));
  CADRE_ASSIGN_OR_RETURN(std::optional<std::string> file, ReadIfPresent(file_path));
  if (!other_file.empty() && !file) return NotFound("{}: no such file", other_file);
  const Value* entry = config.Find("chat_template");
  std::string where = file ? file_path : config_path + ": chat_template";
  std::string source = file.value_or("");
  std::optional<std::string> with_tools;
  bool found = file.has_value();
  if (!found && entry && entry->as_text()) {
    source = entry->as_text()->bytes();
    found = true;
  } else if (!found && entry && entry->as_list()) {
    for (const Value& item : *entry->as_list()) {
      const Dict* named = item.as_dict();
      const Value* name = named ? named->Find("name") : nullptr;
      const Value* text = named ? named->Find("template") : nullptr;
      if (!name || !name->as_text() || !text || !text->as_text()) {
        return InvalidArgument("{}: every entry needs a string 'name' and 'template'", where);
      }
      if (name->as_text()->view() == "default") {
        source = text->as_text()->bytes();
        found = true;
      }
      if (name->as_text()->view() == "tool_use") with_tools = text->as_text()->bytes();
    }
  }
  if (!found) return NotFound("{}: no chat_template.jinja and no default chat_template", model_dir);
  auto parts = std::make_unique<Parts>();
  absl::StatusOr<jinja::Body> body = jinja::ParseTemplate(source);
  if (!body.ok()) return Annotate(body.status(), where);
  parts->source = source;
  parts->body = *std::move(body);
  if (with_tools) {
    body = jinja::ParseTemplate(*with_tools);
    if (!body.ok()) return Annotate(body.status(), where + ": tool_use");
    parts->with_tools = *std::move(body);
  }
  AddSpecialTokens(config, &parts->special_tokens);
  AddSpecialTokens(map, &parts->special_tokens);
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(parts)));
}

namespace {

// The names that a template sees besides the messages and the generation prompt.
absl::StatusOr<Dict> Names(const Dict& special_tokens, const ChatInput& input) {
  auto key = [](std::string_view name) { return Text(std::string(name), Origin::kTemplate); };
  Dict names = special_tokens;
  names.Set(key("documents"), Value::OfNone());
  names.Set(key("tools"), Value::OfNone());
  if (!input.tools.empty()) {
    CADRE_ASSIGN_OR_RETURN(std::vector<Value> tools, ParseList(input.tools, "tools"));
    if (!tools.empty()) names.Set(key("tools"), Value::Of(std::move(tools)));
  }
  if (input.kwargs.empty()) return names;
  CADRE_ASSIGN_OR_RETURN(Value kwargs, jinja::ParseJson(input.kwargs, "chat_template_kwargs"));
  if (!kwargs.as_dict()) return InvalidArgument("chat_template_kwargs: must be an object");
  for (const auto& [name, value] : kwargs.as_dict()->items()) {
    for (std::string_view reserved : kReserved) {
      if (name.view() == reserved) {
        return InvalidArgument("chat_template_kwargs: '{}' is not allowed", reserved);
      }
    }
    names.Set(name, value);
  }
  return names;
}

}  // namespace

absl::StatusOr<Text> ChatTemplate::Parts::Run(Dict names, std::vector<Value> messages,
                                              bool generation_prompt, int64_t now) const {
  auto key = [](std::string_view name) { return Text(std::string(name), Origin::kTemplate); };
  const Value* tools = names.Find("tools");
  const jinja::Body& chosen = with_tools && tools && tools->as_list() ? *with_tools : body;
  names.Set(key("messages"), Value::Of(std::move(messages)));
  names.Set(key("add_generation_prompt"), Value::Of(generation_prompt));
  jinja::Evaluator evaluator(std::move(names), jinja::Limits(), now ? now : std::time(nullptr));
  absl::StatusOr<Text> text = evaluator.Run(chosen);
  if (!text.ok()) return Annotate(text.status(), "chat template");
  return text;
}

absl::StatusOr<RenderedChat> ChatTemplate::Render(const ChatInput& input) const {
  if (input.add_generation_prompt && input.continue_final_message) {
    return InvalidArgument("continue_final_message excludes add_generation_prompt");
  }
  CADRE_ASSIGN_OR_RETURN(std::vector<Value> messages, ParseMessages(input.messages));
  CADRE_ASSIGN_OR_RETURN(Dict names, Names(parts_->special_tokens, input));
  CADRE_ASSIGN_OR_RETURN(
      Text text, parts_->Run(std::move(names), messages, input.add_generation_prompt, input.now));
  if (input.continue_final_message) {
    CADRE_ASSIGN_OR_RETURN(text, CutAtFinalContent(text, messages));
  }
  return ToRendered(text);
}

absl::StatusOr<TrainingChat> ChatTemplate::RenderForTraining(const ChatInput& input) const {
  CADRE_ASSIGN_OR_RETURN(std::vector<Value> messages, ParseMessages(input.messages));
  CADRE_ASSIGN_OR_RETURN(Dict names, Names(parts_->special_tokens, input));
  int64_t now = input.now ? input.now : std::time(nullptr);
  CADRE_ASSIGN_OR_RETURN(Text whole, parts_->Run(names, messages, false, now));
  TrainingChat result{.chat = ToRendered(whole), .assistant = {}};
  for (size_t i = 0; i < messages.size(); ++i) {
    if (Role(messages[i]) != "assistant") continue;
    auto at = messages.begin() + static_cast<std::ptrdiff_t>(i);
    CADRE_ASSIGN_OR_RETURN(Text before, parts_->Run(names, {messages.begin(), at}, true, now));
    CADRE_ASSIGN_OR_RETURN(Text after, parts_->Run(names, {messages.begin(), at + 1}, false, now));
    if (!after.view().starts_with(before.view()) || !whole.view().starts_with(after.view())) {
      return InvalidArgument(
          "messages[{}]: the chat template renders this assistant turn otherwise when the "
          "conversation goes on; cut the conversation so that it ends with this turn",
          i);
    }
    result.assistant.push_back({before.size(), after.size()});
  }
  return result;
}

}  // namespace cadre
