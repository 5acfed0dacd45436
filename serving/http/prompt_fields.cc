#include "serving/http/prompt_fields.h"

#include <algorithm>
#include <limits>

namespace cadre {
namespace {

// Of ids the last `kept`.
std::optional<PromptInput> OnePrompt(const Json& prompt, size_t kept) {
  if (prompt.is_string()) return PromptInput(prompt.get<std::string>());
  if (!prompt.is_array() || prompt.empty()) return std::nullopt;
  const size_t first = prompt.size() - std::min(kept, prompt.size());
  std::vector<int32_t> ids;
  for (size_t i = 0; i < prompt.size(); ++i) {
    const Json& id = prompt[i];
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<int>::max())
      return std::nullopt;
    if (i >= first) ids.push_back(id.get<int32_t>());
  }
  return PromptInput(std::move(ids));
}

}  // namespace

void ReadPrompts(JsonFields* fields, const SchemaContext& context, ApiRequest* request) {
  const std::string& name = request->input_field;
  const Json* prompt = fields->Get(name);
  if (!prompt) {
    return fields->Fail(fmt::format("'{}' is missing", name), name, "missing_required_parameter");
  }
  const bool many = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
  const size_t count = many ? prompt->size() : 1;
  if (count * static_cast<size_t>(request->n) > static_cast<size_t>(context.limits.max_choices)) {
    return fields->Fail(fmt::format("{} prompts times n = {} are more than {}", count, request->n,
                                    context.limits.max_choices),
                        name);
  }
  const auto most = static_cast<size_t>(context.max_context);
  for (size_t i = 0; i < count; ++i) {
    const Json& one = many ? (*prompt)[i] : *prompt;
    const bool cut = request->truncate_prompt_tokens != 0 &&
                     request->truncate_prompt_tokens <= context.max_context;
    if (one.is_array() && one.size() > most && !cut) {
      return fields->Fail(
          fmt::format("the context is {} tokens: a prompt has {}", most, one.size()), name,
          "context_length_exceeded");
    }
    std::optional<PromptInput> input = OnePrompt(one, most);
    const bool alike = one.is_string() == (many ? prompt->front() : *prompt).is_string();
    if (!input || !alike) {
      return fields->Fail(
          fmt::format("'{}' must be a string, a list of strings, a list of token ids or a list of "
                      "such lists",
                      name),
          name);
    }
    request->prompts.push_back(*std::move(input));
  }
}

}  // namespace cadre
