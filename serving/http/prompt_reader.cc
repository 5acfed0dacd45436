#include "serving/http/prompt_reader.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace cadre {

struct PromptReader::Reading {
  const ApiRequest& request;
  const ModelInfo& info;
  size_t kept;  // tokens of each prompt, from its end
  size_t most;  // that a prompt may have
};

namespace {

constexpr size_t kAny = std::numeric_limits<size_t>::max();

size_t LongestToken(const Tokenizer& tokenizer) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.TokenBytes(id).size());
  }
  return longest;
}

size_t KeptTokens(const ApiRequest& request, const ModelInfo& info, bool counts) {
  if (request.truncate_prompt_tokens == 0) return kAny;
  if (request.truncate_prompt_tokens > 0) {
    return static_cast<size_t>(request.truncate_prompt_tokens);
  }
  const int most = request.kv_budget > 0 ? info.max_context : info.max_sequence;
  const int answer = request.max_tokens.value_or(counts ? 0 : 1);
  return static_cast<size_t>(std::max(most - answer, 1));
}

ApiError TooLong(const ApiRequest& request, size_t most) {
  return BadRequest(fmt::format("the context is {} tokens, and the prompt has more "
                                "(truncate_prompt_tokens keeps its end)",
                                most),
                    request.input_field, "context_length_exceeded");
}

}  // namespace

PromptReader::PromptReader(const Tokenizer& tokenizer, const ChatTemplate* chat_template,
                           bool thinks)
    : tokenizer_(tokenizer),
      chat_template_(chat_template),
      thinks_(thinks),
      longest_token_(LongestToken(tokenizer)) {}

std::optional<ApiError> PromptReader::Read(const ApiRequest& request, const ModelInfo& info,
                                           bool counts, Prompts* prompts) const {
  const bool any = counts || request.truncate_prompt_tokens != 0;
  const Reading reading{.request = request,
                        .info = info,
                        .kept = KeptTokens(request, info, counts),
                        .most = any ? kAny : static_cast<size_t>(info.max_context)};
  if (request.chat) {
    if (auto error = ReadMessages(reading, prompts)) return error;
  }
  for (const PromptInput& prompt : request.prompts) {
    if (auto error = ReadPrompt(reading, prompt, prompts)) return error;
  }
  for (const AnswerFacts::Prompt& prompt : prompts->all) {
    if (prompt.ids->size() > reading.most) return TooLong(request, reading.most);
    if (prompt.ids->empty() && !counts) {
      return BadRequest("the prompt is empty", request.input_field, "invalid_value");
    }
  }
  return std::nullopt;
}

std::optional<ApiError> PromptReader::ReadMessages(const Reading& reading, Prompts* prompts) const {
  const ApiRequest& request = reading.request;
  if (chat_template_ == nullptr) {
    return BadRequest("the model has no chat template", request.input_field, "no_chat_template");
  }
  absl::StatusOr<RenderedChat> chat = chat_template_->Render(request.chat_input);
  if (!chat.ok()) {
    return BadRequest(Message(chat.status()), request.input_field, "chat_template_error");
  }
  const std::vector<TextSpan> spans = chat->Spans();
  const bool continues =
      request.chat_input.continue_final_message && !spans.empty() && !spans.back().from_template;
  if (thinks_) prompts->thinking = ThinkingAfter(chat->text, continues ? spans.back().text : "");
  if (CannotFit(reading, chat->text.size())) return TooLong(request, reading.most);
  const EncodeOptions options{.add_special_tokens = request.add_special_tokens.value_or(false),
                              .most_ids = reading.most};
  Add(reading, tokenizer_.EncodeSpans(spans, options),
      request.echo ? request.echo_text : std::string(), prompts);
  return std::nullopt;
}

std::optional<ApiError> PromptReader::ReadPrompt(const Reading& reading, const PromptInput& prompt,
                                                 Prompts* prompts) const {
  const ApiRequest& request = reading.request;
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    if (CannotFit(reading, text->size())) return TooLong(request, reading.most);
    const EncodeOptions options{.add_special_tokens = request.add_special_tokens.value_or(true),
                                .most_ids = reading.most};
    Add(reading, tokenizer_.Encode(*text, options), request.echo ? *text : std::string(), prompts);
    return std::nullopt;
  }
  const auto& ids = std::get<std::vector<int32_t>>(prompt);
  const int vocab = reading.info.vocab_size;
  for (int32_t id : ids) {
    if (id < vocab) continue;
    return BadRequest(fmt::format("'{}' has the token id {}, but ids end at {}",
                                  request.input_field, id, vocab - 1),
                      request.input_field, "invalid_value");
  }
  Add(reading, ids,
      request.echo ? tokenizer_.Decode(ids, request.skip_special_tokens) : std::string(), prompts);
  return std::nullopt;
}

bool PromptReader::CannotFit(const Reading& reading, size_t bytes) const {
  return bytes / longest_token_ > reading.most;
}

void PromptReader::Add(const Reading& reading, std::vector<int32_t> ids, std::string echo,
                       Prompts* prompts) const {
  const ApiRequest& request = reading.request;
  if (ids.size() > reading.kept) {
    ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(reading.kept));
    if (request.echo && !request.chat) echo = tokenizer_.Decode(ids, request.skip_special_tokens);
  }
  prompts->all.push_back(
      {std::make_shared<const std::vector<int32_t>>(std::move(ids)), std::move(echo)});
}

}  // namespace cadre
