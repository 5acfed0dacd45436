#include "serving/http/openai_response.h"

#include <algorithm>
#include <cmath>

#include "serving/http/json_fields.h"

namespace cadre {
namespace {

// A token's own bytes as text; what is no whole character is spelled out.
std::string TokenText(const Tokenizer& tokenizer, int32_t id) {
  std::string bytes(tokenizer.TokenBytes(id));
  if (IsValidUtf8(bytes)) return bytes;
  std::string spelled = "bytes:";
  for (unsigned char c : bytes) spelled += fmt::format("\\x{:02x}", c);
  return spelled;
}

// JSON has no infinities: the lowest finite float stands for a probability of 0.
double Finite(float logprob) { return std::isfinite(logprob) ? logprob : -9999.0; }

Json TokenJson(const Tokenizer& tokenizer, const TokenLogprob& token) {
  Json bytes = Json::array();
  for (unsigned char c : tokenizer.TokenBytes(token.token)) bytes.push_back(c);
  return {{"token", TokenText(tokenizer, token.token)},
          {"logprob", Finite(token.logprob)},
          {"bytes", std::move(bytes)}};
}

Json ChatLogprobs(const Tokenizer& tokenizer, const std::vector<LogprobEntry>& entries) {
  Json content = Json::array();
  for (const LogprobEntry& entry : entries) {
    Json token = TokenJson(tokenizer, entry.chosen);
    token["top_logprobs"] = Json::array();
    for (const TokenLogprob& top : entry.top) {
      token["top_logprobs"].push_back(TokenJson(tokenizer, top));
    }
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}};
}

Json CompletionLogprobs(const Tokenizer& tokenizer, const std::vector<LogprobEntry>& entries) {
  Json tokens = Json::array(), values = Json::array(), tops = Json::array(),
       offsets = Json::array();
  for (const LogprobEntry& entry : entries) {
    std::string text = TokenText(tokenizer, entry.chosen.token);
    tokens.push_back(text);
    offsets.push_back(entry.text_offset);
    if (!entry.has_logprob) {
      values.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    values.push_back(Finite(entry.chosen.logprob));
    Json top = Json::object();
    for (const TokenLogprob& other : entry.top) {
      top.emplace(TokenText(tokenizer, other.token), Finite(other.logprob));
    }
    top.emplace(text, Finite(entry.chosen.logprob));
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

Json FinishJson(FinishReason reason) {
  if (reason == FinishReason::kNone) return nullptr;
  return reason == FinishReason::kLength ? "length" : "stop";
}

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Event(const Json& json) { return "data: " + Dump(json) + "\n\n"; }

Json Head(const AnswerFacts& facts, bool stream) {
  const char* object = !facts.chat ? "text_completion"
                       : stream    ? "chat.completion.chunk"
                                   : "chat.completion";
  return {{"id", facts.id},
          {"object", object},
          {"created", facts.created},
          {"model", facts.model},
          {"system_fingerprint", facts.fingerprint}};
}

}  // namespace

struct AnswerWriter::Usage {
  int64_t prompt = 0;
  int64_t completion = 0;
  int64_t cached = 0;

  Json ToJson() const {
    return {{"prompt_tokens", prompt},
            {"completion_tokens", completion},
            {"total_tokens", prompt + completion},
            {"prompt_tokens_details", {{"cached_tokens", cached}}}};
  }
};

struct AnswerWriter::Choice {
  std::string text;  // whole answers only
  std::vector<LogprobEntry> logprobs;
  FinishReason finish = FinishReason::kNone;
  int tokens = 0;
  int cached_tokens = 0;
  bool begun = false;
  size_t bytes = 0;       // of the sequence's own text so far
  size_t characters = 0;  // of the echo and the text so far
};

AnswerWriter::AnswerWriter(const Tokenizer& tokenizer, AnswerFacts facts)
    : tokenizer_(tokenizer), facts_(std::move(facts)), unfinished_(facts_.num_choices()) {
  for (size_t i = 0; i < facts_.num_choices(); ++i) choices_.push_back(std::make_unique<Choice>());
}

AnswerWriter::~AnswerWriter() = default;

// At a choice's first delta: the echoed prompt and its logprobs go in front.
void AnswerWriter::Begin(size_t index, ChoiceDelta* delta) {
  Choice& choice = *choices_[index];
  if (choice.begun || !facts_.echo) return;
  const AnswerFacts::Prompt& prompt = facts_.prompts[index / static_cast<size_t>(facts_.n)];
  std::vector<LogprobEntry> entries;
  StreamDecoder decoder(tokenizer_, /*skip_special_tokens=*/true);
  size_t offset = 0;
  for (size_t i = 0; i < delta->prompt_logprobs.size(); ++i) {
    LogprobEntry entry{.chosen = delta->prompt_logprobs[i],
                       .top = {},
                       .has_logprob = i > 0,
                       .text_offset = offset};
    if (i < delta->prompt_top.size()) entry.top = std::move(delta->prompt_top[i]);
    offset += CountCharacters(decoder.Push(entry.chosen.token));
    entries.push_back(std::move(entry));
  }
  // Characters of the echo; the tokens' own offsets count on from there.
  choice.characters = CountCharacters(prompt.echo);
  for (LogprobEntry& entry : delta->logprobs) entries.push_back(std::move(entry));
  delta->logprobs = std::move(entries);
}

// Keeps the books of a choice and turns its logprobs' byte offsets into characters.
void AnswerWriter::Count(Choice* choice, const ChoiceDelta& delta) {
  choice->tokens += delta.tokens;
  choice->cached_tokens = std::max(choice->cached_tokens, delta.cached_tokens);
  choice->bytes += delta.text.size();
  choice->characters += CountCharacters(delta.text);
  bool failed = delta.finish == FinishReason::kError || delta.finish == FinishReason::kCancelled;
  if (failed && error_.ok()) {
    error_ = delta.error.ok() ? Unavailable("the request was cancelled") : delta.error;
  }
  if (delta.finish != FinishReason::kNone && choice->finish == FinishReason::kNone) {
    choice->finish = delta.finish;
    --unfinished_;
  }
}

std::string AnswerWriter::Stream(ChoiceDelta delta) {
  size_t index = delta.choice;
  Choice& choice = *choices_[index];
  if (choice.finish != FinishReason::kNone) return "";
  size_t sampled_from = delta.logprobs.size();
  Begin(index, &delta);
  sampled_from = delta.logprobs.size() - sampled_from;
  for (size_t i = sampled_from; i < delta.logprobs.size(); ++i) {
    size_t inside = delta.logprobs[i].text_offset - choice.bytes;
    delta.logprobs[i].text_offset =
        choice.characters + CountCharacters(std::string_view(delta.text).substr(0, inside));
  }
  std::string events;
  bool first = !std::exchange(choice.begun, true);
  Count(&choice, delta);
  if (!error_.ok()) return "";
  Json chunk = Head(facts_, true);
  auto add = [&](Json content, Json logprobs, Json finish) {
    Json entry = {{"index", index}};
    entry.update(content);
    entry["logprobs"] = std::move(logprobs);
    entry["finish_reason"] = std::move(finish);
    chunk["choices"] = Json::array({std::move(entry)});
    events += Event(chunk);
  };
  if (first && facts_.chat) {
    add({{"delta", {{"role", "assistant"}, {"content", ""}}}}, nullptr, nullptr);
  }
  bool logprobs = facts_.logprobs && !delta.logprobs.empty();
  std::string echo =
      first && facts_.echo ? facts_.prompts[index / static_cast<size_t>(facts_.n)].echo : "";
  bool finished = delta.finish != FinishReason::kNone;
  if (delta.text.empty() && echo.empty() && !logprobs && !finished) return events;
  Json values;
  if (logprobs) {
    values = facts_.chat ? ChatLogprobs(tokenizer_, delta.logprobs)
                         : CompletionLogprobs(tokenizer_, delta.logprobs);
  }
  Json content;
  if (facts_.chat) {
    content["delta"] = Json::object();
    if (!delta.text.empty() || logprobs) content["delta"]["content"] = delta.text;
  } else {
    content["text"] = echo + delta.text;
  }
  add(std::move(content), std::move(values), FinishJson(delta.finish));
  return events;
}

void AnswerWriter::Collect(ChoiceDelta delta) {
  size_t index = delta.choice;
  Choice& choice = *choices_[index];
  if (choice.finish != FinishReason::kNone) return;
  size_t sampled = delta.logprobs.size();
  Begin(index, &delta);
  if (!std::exchange(choice.begun, true) && facts_.echo) {
    choice.text = facts_.prompts[index / static_cast<size_t>(facts_.n)].echo;
  }
  for (size_t i = delta.logprobs.size() - sampled; i < delta.logprobs.size(); ++i) {
    size_t inside = delta.logprobs[i].text_offset - choice.bytes;
    delta.logprobs[i].text_offset =
        choice.characters + CountCharacters(std::string_view(delta.text).substr(0, inside));
  }
  Count(&choice, delta);
  choice.text += delta.text;
  for (LogprobEntry& entry : delta.logprobs) choice.logprobs.push_back(std::move(entry));
}

std::string AnswerWriter::StreamEnd() const {
  std::string events;
  if (facts_.include_usage) {
    Json chunk = Head(facts_, true);
    chunk["choices"] = Json::array();
    chunk["usage"] = CountUsage().ToJson();
    events = Event(chunk);
  }
  return events + "data: [DONE]\n\n";
}

std::string AnswerWriter::StreamError(const ApiError& error) {
  return "data: " + error.Body() + "\n\ndata: [DONE]\n\n";
}

std::string AnswerWriter::Whole() const {
  Json body = Head(facts_, false);
  body["choices"] = Json::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = *choices_[i];
    Json entry = {{"index", i}};
    if (facts_.chat) {
      entry["message"] = {{"role", "assistant"}, {"content", choice.text}};
    } else {
      entry["text"] = choice.text;
    }
    entry["logprobs"] = nullptr;
    if (facts_.logprobs) {
      entry["logprobs"] = facts_.chat ? ChatLogprobs(tokenizer_, choice.logprobs)
                                      : CompletionLogprobs(tokenizer_, choice.logprobs);
    }
    entry["finish_reason"] = FinishJson(choice.finish);
    body["choices"].push_back(std::move(entry));
  }
  body["usage"] = CountUsage().ToJson();
  return Dump(body);
}

AnswerWriter::Usage AnswerWriter::CountUsage() const {
  int64_t prompt = 0, completion = 0, cached = 0;
  for (const AnswerFacts::Prompt& one : facts_.prompts)
    prompt += static_cast<int64_t>(one.ids->size());
  for (size_t i = 0; i < choices_.size(); ++i) {
    completion += choices_[i]->tokens;
    // The choices of one prompt share it; it is counted once, as the prompt's tokens are.
    if (i % static_cast<size_t>(facts_.n) == 0) cached += choices_[i]->cached_tokens;
  }
  return {prompt, completion, cached};
}

std::string ModelsBody(const std::vector<std::string>& names, int64_t created, int max_context) {
  Json data = Json::array();
  for (const std::string& name : names) {
    data.push_back({{"id", name},
                    {"object", "model"},
                    {"created", created},
                    {"owned_by", "cadre"},
                    {"max_model_len", max_context}});
  }
  return Dump({{"object", "list"}, {"data", std::move(data)}});
}

}  // namespace cadre
