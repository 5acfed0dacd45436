#include "model/tokenizer_load.h"

namespace cadre {
namespace {

// The ids of a template's special token, from its table.
absl::Status AppendTemplateToken(const JsonNode& tokens, std::string_view name,
                                 const TokenizerParts& parts, std::vector<int32_t>* ids) {
  CADRE_ASSIGN_OR_RETURN(const JsonNode token, tokens.Get(name));
  CADRE_ASSIGN_OR_RETURN(const JsonNode list, token.Get("ids"));
  CADRE_ASSIGN_OR_RETURN(const simdjson::dom::array items, list.Array());
  size_t index = 0;
  for (const simdjson::dom::element item : items) {
    CADRE_ASSIGN_OR_RETURN(
        const int64_t id,
        list.Item(item, index++).Integer(0, static_cast<int64_t>(parts.tokens.size()) - 1));
    ids->push_back(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

absl::Status LoadTemplate(const JsonNode& node, TokenizerParts* parts) {
  CADRE_ASSIGN_OR_RETURN(const JsonNode single, node.Get("single"));
  CADRE_ASSIGN_OR_RETURN(const simdjson::dom::array items, single.Array());
  std::vector<int32_t> before, after;
  bool behind_text = false;
  size_t index = 0;
  for (const simdjson::dom::element item : items) {
    const JsonNode part = single.Item(item, index++);
    if (part.Find("Sequence")) {
      if (behind_text) return Unimplemented("{}: a second sequence", part.where);
      behind_text = true;
      continue;
    }
    CADRE_ASSIGN_OR_RETURN(const JsonNode token, part.Get("SpecialToken"));
    CADRE_ASSIGN_OR_RETURN(const std::string_view name, token.GetString("id"));
    CADRE_ASSIGN_OR_RETURN(const JsonNode tokens, node.Get("special_tokens"));
    CADRE_RETURN_IF_ERROR(
        AppendTemplateToken(tokens, name, *parts, behind_text ? &after : &before));
  }
  if (!behind_text) return InvalidArgument("{}: no \"Sequence\" in it", single.where);
  parts->prefix_ids.insert(parts->prefix_ids.begin(), before.begin(), before.end());
  parts->suffix_ids.insert(parts->suffix_ids.end(), after.begin(), after.end());
  return absl::OkStatus();
}

}  // namespace

absl::Status LoadPostProcessor(const JsonNode& node, TokenizerParts* parts) {
  return VisitSequence(node, "processors", [&](const JsonNode& part, std::string_view type) {
    // ByteLevel trims offsets only, and no offsets are kept.
    if (type == "ByteLevel") return absl::OkStatus();
    if (type == "TemplateProcessing") return LoadTemplate(part, parts);
    return Unimplemented("{}: type \"{}\"; known are TemplateProcessing, ByteLevel and Sequence",
                         part.where, type);
  });
}

}  // namespace cadre
