#include "serving/http/prompt_fields.h"

#include <limits>

namespace cadre {
namespace {

std::optional<PromptInput> OnePrompt(const Json& prompt) {
  if (prompt.is_string()) return PromptInput(prompt.get<std::string>());
  if (!prompt.is_array() || prompt.empty()) return std::nullopt;
  std::vector<int32_t> ids;
  for (const Json& id : prompt) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<int>::max())
      return std::nullopt;
    ids.push_back(id.get<int32_t>());
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
  bool many = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
  Json list = many ? *prompt : Json::array({*prompt});
  if (list.size() * static_cast<size_t>(request->n) >
      static_cast<size_t>(context.limits.max_choices)) {
    return fields->Fail(fmt::format("{} prompts times n = {} are more than {}", list.size(),
                                    request->n, context.limits.max_choices),
                        name);
  }
  for (const Json& one : list) {
    std::optional<PromptInput> input = OnePrompt(one);
    if (!input || one.is_string() != list.front().is_string()) {
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
