#include "serving/http/text_constraints.h"

#include "serving/http/json_fields.h"
#include "serving/http/reasoning.h"

namespace cadre {
namespace {

// `inner`, behind thoughts that are still open or that may come.
Grammar BehindThoughts(Grammar inner, bool open) {
  const NodeId space = inner.Repeat(inner.Class({{'\n', '\n'}, {' ', ' '}}), 0, 4);
  const NodeId thoughts = inner.Sequence({inner.Until(kThinkClose), space});
  const NodeId opened = inner.Sequence({space, inner.Bytes(kThinkOpen), thoughts});
  const NodeId body =
      inner.Sequence({open ? thoughts : inner.Optional(opened), inner.Rule(inner.root)});
  inner.root = inner.AddRule("message");
  inner.rules[inner.root].body = body;
  return inner;
}

std::string ToolKey(const ToolRequest& request, const ToolFormat& format) {
  Json tools = Json::array();
  for (const Tool& tool : request.tools) tools.push_back({tool.name, tool.parameters});
  return fmt::format("call:{}:{}:{}", format.name, request.parallel, tools.dump());
}

}  // namespace

TextConstraints::TextConstraints(const Tokenizer& tokenizer, GrammarCache::Options options)
    : tokenizer_(tokenizer), options_(options) {
  for (std::string_view text : {std::string_view("[TOOL_CALLS]"), kThinkOpen, kThinkClose}) {
    const std::optional<int32_t> id = tokenizer.TokenToId(text);
    if (!id || !tokenizer.IsSpecial(*id)) continue;
    markers_.push_back(*id);
    thoughts_are_marked_ = thoughts_are_marked_ || text == kThinkClose;
  }
}

bool TextConstraints::NeedsMarkers(const MessageFormat& message) const {
  return (message.tools != nullptr && message.tools->special_markers) ||
         (message.reasoning && thoughts_are_marked_);
}

GrammarCache& TextConstraints::Cache(bool markers) {
  std::call_once(once_[markers], [&] {
    caches_[markers] = std::make_unique<GrammarCache>(
        TokenTrie::Of(tokenizer_,
                      markers ? std::span<const int32_t>(markers_) : std::span<const int32_t>()),
        options_);
  });
  return *caches_[markers];
}

std::optional<ApiError> TextConstraints::Find(const ApiRequest& request,
                                              const MessageFormat& message,
                                              std::shared_ptr<const CompiledGrammar>* grammar) {
  const TextForm& form = request.form;
  const bool forced = request.tools.choice == ToolRequest::Choice::kForced;
  if (form.kind == TextForm::Kind::kFree && !forced) return std::nullopt;
  std::string key = forced ? ToolKey(request.tools, *message.tools)
                           : fmt::format("form:{}:{}", static_cast<int>(form.kind), form.text);
  if (message.reasoning) key = fmt::format("think:{}:{}", message.begins_in_reasoning, key);
  // Elsewhere a marker inside of a string would be lost on the way to the client.
  const bool markers = !markers_.empty() && NeedsMarkers(message);
  auto found = Cache(markers).Get(key, [&]() -> absl::StatusOr<Grammar> {
    CADRE_ASSIGN_OR_RETURN(Grammar text,
                           forced ? ToolGrammar(request.tools, *message.tools) : FormGrammar(form));
    if (!message.reasoning) return text;
    return BehindThoughts(std::move(text), message.begins_in_reasoning);
  });
  if (absl::IsResourceExhausted(found.status())) return FromStatus(found.status());
  if (!found.ok()) {
    const std::string param = forced ? "tools" : form.param;
    return BadRequest(fmt::format("'{}': {}", param, Message(found.status())), param,
                      "invalid_value");
  }
  *grammar = *std::move(found);
  return std::nullopt;
}

}  // namespace cadre
