#include "serving/http/answer_json.h"

#include <algorithm>
#include <cmath>

namespace cadre {

std::string TokenText(const Tokenizer& tokenizer, int32_t id) {
  std::string bytes(tokenizer.TokenBytes(id));
  if (IsValidUtf8(bytes)) return bytes;
  std::string spelled = "bytes:";
  for (unsigned char c : bytes) spelled += fmt::format("\\x{:02x}", c);
  return spelled;
}

double FiniteLogprob(float logprob) { return std::isfinite(logprob) ? logprob : -9999.0; }

namespace {

Json TokenJson(const Tokenizer& tokenizer, const TokenLogprob& token) {
  Json bytes = Json::array();
  for (unsigned char c : tokenizer.TokenBytes(token.token)) bytes.push_back(c);
  return {{"token", TokenText(tokenizer, token.token)},
          {"logprob", FiniteLogprob(token.logprob)},
          {"bytes", std::move(bytes)}};
}

}  // namespace

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
    values.push_back(FiniteLogprob(entry.chosen.logprob));
    Json top = Json::object();
    for (const TokenLogprob& other : entry.top) {
      top.emplace(TokenText(tokenizer, other.token), FiniteLogprob(other.logprob));
    }
    top.emplace(text, FiniteLogprob(entry.chosen.logprob));
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

Json PromptLogprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& tokens,
                    const std::vector<std::vector<TokenLogprob>>& top, int k) {
  Json list = Json::array();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i == 0) {
      list.push_back(nullptr);
      continue;
    }
    Json entry = Json::object();
    auto add = [&](const TokenLogprob& one, int rank) {
      entry.emplace(std::to_string(one.token),
                    Json{{"logprob", FiniteLogprob(one.logprob)},
                         {"rank", rank},
                         {"decoded_token", TokenText(tokenizer, one.token)}});
    };
    add(tokens[i], tokens[i].rank);
    for (int j = 0; i < top.size() && j < std::min(k, static_cast<int>(top[i].size())); ++j) {
      add(top[i][static_cast<size_t>(j)], j + 1);
    }
    list.push_back(std::move(entry));
  }
  return list;
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

std::string DataEvent(const Json& json) { return "data: " + Dump(json) + "\n\n"; }

Json UsageJson(const AnswerUsage& usage) {
  Json json = {{"prompt_tokens", usage.prompt},
               {"completion_tokens", usage.completion},
               {"total_tokens", usage.prompt + usage.completion},
               {"prompt_tokens_details", {{"cached_tokens", usage.cached}}}};
  if (usage.reasoning > 0) {
    json["completion_tokens_details"] = {{"reasoning_tokens", usage.reasoning}};
  }
  return json;
}

Json ModelJson(const std::string& name, int64_t created, int max_context) {
  return {{"id", name},
          {"object", "model"},
          {"created", created},
          {"owned_by", "cadre"},
          {"max_model_len", max_context}};
}

std::string ModelsBody(const std::vector<std::string>& names, int64_t created, int max_context) {
  Json data = Json::array();
  for (const std::string& name : names) {
    data.push_back(ModelJson(name, created, max_context));
  }
  return Dump({{"object", "list"}, {"data", std::move(data)}});
}

}  // namespace cadre
