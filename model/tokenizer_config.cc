#include <charconv>

#include "model/tokenizer_load.h"

namespace cadre {
namespace {

// A token's name: a string, or an object with "content"; empty where absent.
absl::StatusOr<std::string_view> TokenName(const JsonNode& config, std::string_view key) {
  const std::optional<JsonNode> node = config.Find(key);
  if (!node) return std::string_view();
  if (node->value.is_object()) return node->GetString("content");
  return node->String();
}

absl::Status LoadSpecialName(const JsonNode& config, std::string_view key,
                             TokenizerEntries* entries, TokenizerParts* parts,
                             std::optional<int32_t>* id) {
  CADRE_ASSIGN_OR_RETURN(const std::string_view name, TokenName(config, key));
  if (name.empty() || *id) return absl::OkStatus();
  const auto found = parts->ids.find(name);
  if (found == parts->ids.end()) {
    return InvalidArgument("{} {}: \"{}\" is not in the vocabulary", config.where, key, name);
  }
  *id = found->second;
  if (parts->special[**id]) return absl::OkStatus();
  return EnterAddedToken({.content = std::string(name), .id = **id, .special = true}, config.where,
                         entries, parts);
}

absl::Status LoadAddedTokens(const JsonNode& config, TokenizerEntries* entries,
                             TokenizerParts* parts) {
  const std::optional<JsonNode> list = config.Find("added_tokens_decoder");
  if (!list) return absl::OkStatus();
  CADRE_ASSIGN_OR_RETURN(const simdjson::dom::object object, list->Object());
  for (const auto [key, value] : object) {
    const JsonNode node{value, fmt::format("{}.{}", list->where, key)};
    AddedToken token;
    CADRE_ASSIGN_OR_RETURN(token.content, node.GetString("content"));
    if (parts->ids.contains(token.content)) continue;
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      return InvalidArgument("{}: an id is needed as the key", node.where);
    }
    token.id = id;
    CADRE_ASSIGN_OR_RETURN(token.special, node.GetBool("special", false));
    CADRE_ASSIGN_OR_RETURN(token.normalized, node.GetBool("normalized", !token.special));
    CADRE_ASSIGN_OR_RETURN(token.lstrip, node.GetBool("lstrip", false));
    CADRE_ASSIGN_OR_RETURN(token.rstrip, node.GetBool("rstrip", false));
    CADRE_ASSIGN_OR_RETURN(token.single_word, node.GetBool("single_word", false));
    CADRE_RETURN_IF_ERROR(EnterAddedToken(token, node.where, entries, parts));
  }
  return absl::OkStatus();
}

// A string, or a list of named templates with one called "default".
absl::Status LoadChatTemplate(const JsonNode& config, TokenizerParts* parts) {
  const std::optional<JsonNode> node = config.Find("chat_template");
  if (!node || !parts->chat_template.empty()) return absl::OkStatus();
  if (node->value.is_string()) {
    CADRE_ASSIGN_OR_RETURN(parts->chat_template, node->String());
    return absl::OkStatus();
  }
  CADRE_ASSIGN_OR_RETURN(const simdjson::dom::array items, node->Array());
  size_t index = 0;
  for (const simdjson::dom::element item : items) {
    const JsonNode part = node->Item(item, index++);
    CADRE_ASSIGN_OR_RETURN(const std::string_view name, part.GetString("name"));
    if (name != "default") continue;
    CADRE_ASSIGN_OR_RETURN(parts->chat_template, part.GetString("template"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LoadConfig(const JsonNode& config, TokenizerEntries* entries, TokenizerParts* parts) {
  if (!config.value.is_object()) return config.Wrong("an object");
  CADRE_RETURN_IF_ERROR(LoadAddedTokens(config, entries, parts));
  CADRE_RETURN_IF_ERROR(LoadSpecialName(config, "bos_token", entries, parts, &parts->bos_id));
  CADRE_RETURN_IF_ERROR(LoadSpecialName(config, "eos_token", entries, parts, &parts->eos_id));
  CADRE_RETURN_IF_ERROR(LoadSpecialName(config, "pad_token", entries, parts, &parts->pad_id));
  return LoadChatTemplate(config, parts);
}

absl::Status LoadConfigBosEos(const JsonNode& config, TokenizerParts* parts) {
  if (!parts->prefix_ids.empty() || !parts->suffix_ids.empty()) return absl::OkStatus();
  CADRE_ASSIGN_OR_RETURN(const bool add_bos, config.GetBool("add_bos_token", false));
  CADRE_ASSIGN_OR_RETURN(const bool add_eos, config.GetBool("add_eos_token", false));
  if (add_bos && parts->bos_id) parts->prefix_ids.push_back(*parts->bos_id);
  if (add_eos && parts->eos_id) parts->suffix_ids.push_back(*parts->eos_id);
  return absl::OkStatus();
}

}  // namespace cadre
