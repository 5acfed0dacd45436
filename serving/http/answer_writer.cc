#include "serving/http/answer_writer.h"

#include <algorithm>
#include <utility>

#include "serving/http/answer_json.h"

namespace cadre {

AnswerWriter::AnswerWriter(const Tokenizer& tokenizer, AnswerFacts facts)
    : tokenizer_(tokenizer),
      facts_(std::move(facts)),
      choices_(facts_.num_choices()),
      unfinished_(facts_.num_choices()) {
  if (!facts_.message.reasoning) return;
  for (Choice& choice : choices_) choice.thoughts.emplace(facts_.message.begins_in_reasoning);
}

AnswerWriter::~AnswerWriter() = default;

// At a choice's first delta: the echoed prompt and its logprobs go in front.
void AnswerWriter::Echo(size_t index, ChoiceDelta* delta) {
  delta->text.insert(0, PromptOf(index).echo);
  if (facts_.echo_logprobs < 0) return;
  std::vector<LogprobEntry> entries;
  StreamDecoder decoder(tokenizer_, facts_.echo_skips_special);
  size_t offset = 0;
  for (size_t i = 0; i < delta->prompt_logprobs.size(); ++i) {
    LogprobEntry entry{.chosen = delta->prompt_logprobs[i],
                       .top = {},
                       .has_logprob = i > 0,
                       .text_offset = offset};
    if (i < delta->prompt_top.size()) entry.top = delta->prompt_top[i];
    entry.top.resize(std::min(entry.top.size(), static_cast<size_t>(facts_.echo_logprobs)));
    offset += CountCharacters(decoder.Push(entry.chosen.token));
    entries.push_back(std::move(entry));
  }
  for (LogprobEntry& entry : delta->logprobs) entries.push_back(std::move(entry));
  delta->logprobs = std::move(entries);
}

void AnswerWriter::Count(Choice* choice, const ChoiceDelta& delta, size_t own_bytes) {
  choice->tokens += delta.tokens;
  choice->cached_tokens = std::max(choice->cached_tokens, delta.cached_tokens);
  choice->bytes += own_bytes;
  choice->characters += CountCharacters(delta.text);
  bool failed = delta.finish == FinishReason::kError || delta.finish == FinishReason::kCancelled;
  if (failed && error_.ok()) {
    // Whoever cancels a request reads no more of it; else it is the server that ends.
    error_ = delta.error.ok() ? Unavailable("the server stopped before the answer was complete")
                              : delta.error;
  }
  if (delta.finish != FinishReason::kNone) {
    choice->finish = delta.finish;
    choice->stop = delta.stop;
    --unfinished_;
  }
}

void AnswerWriter::CountThoughts(Choice* choice, const ChoiceDelta& delta) {
  if (!choice->thoughts || choice->thoughts->over()) return;
  ReasoningSplitter::Output ignored;
  choice->thoughts->Push(delta.text, &ignored);
  choice->thinking_tokens += delta.tokens;
}

bool AnswerWriter::Take(ChoiceDelta* delta, bool* first) {
  const size_t index = delta->choice;
  Choice& choice = choices_[index];
  if (choice.finish != FinishReason::kNone) return false;
  *first = !std::exchange(choice.begun, true);
  const bool echoes = *first && facts_.echo;
  // Characters of the echo; the tokens' own offsets count on from there.
  size_t characters = choice.characters;
  if (echoes) {
    characters += CountCharacters(PromptOf(index).echo);
  }
  for (LogprobEntry& entry : delta->logprobs) {
    const size_t inside = entry.text_offset - choice.bytes;
    entry.text_offset =
        characters + CountCharacters(std::string_view(delta->text).substr(0, inside));
  }
  const size_t own_bytes = delta->text.size();
  CountThoughts(&choice, *delta);
  if (echoes) Echo(index, delta);
  if (facts_.return_token_ids && delta->token >= 0) choice.token_ids.push_back(delta->token);
  if (*first) choice.embedding = std::move(delta->embedding);
  if (*first && facts_.prompt_logprobs >= 0) {
    choice.prompt_logprobs = std::move(delta->prompt_logprobs);
    choice.prompt_top = std::move(delta->prompt_top);
  }
  Count(&choice, *delta, own_bytes);
  return true;
}

std::string AnswerWriter::Stream(ChoiceDelta delta) {
  bool first = false;
  if (!Take(&delta, &first) || !error_.ok()) return "";
  return Events(delta.choice, delta, first);
}

void AnswerWriter::Collect(ChoiceDelta delta) {
  bool first = false;
  if (!Take(&delta, &first)) return;
  Choice& choice = choices_[delta.choice];
  choice.text += delta.text;
  for (LogprobEntry& entry : delta.logprobs) choice.logprobs.push_back(std::move(entry));
}

AnswerUsage AnswerWriter::CountUsage() const {
  AnswerUsage usage;
  for (const AnswerFacts::Prompt& one : facts_.prompts) {
    usage.prompt += static_cast<int64_t>(one.ids->size());
  }
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    usage.completion += choice.tokens;
    if (choice.thoughts && choice.thoughts->thought()) usage.reasoning += choice.thinking_tokens;
    if (i % static_cast<size_t>(facts_.n) == 0) usage.cached += choices_[i].cached_tokens;
  }
  return usage;
}

}  // namespace cadre
