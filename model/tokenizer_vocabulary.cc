#include <algorithm>
#include <string>

#include "model/tokenizer_load.h"
#include "model/tokenizer_unicode.h"

namespace cadre {
namespace {

constexpr int64_t kMaxId = (1 << 26) - 1;
constexpr int64_t kMaxUnusedIds = 65'536;

struct MergeSource {
  std::string_view left, right;
  bool comment = false;
};

// Both forms: "a b" and ["a", "b"].
absl::StatusOr<MergeSource> ParseMerge(const JsonNode& node) {
  MergeSource merge;
  if (node.value.is_string()) {
    CADRE_ASSIGN_OR_RETURN(const std::string_view line, node.String());
    merge.comment = line.starts_with("#version");
    const size_t space = line.find(' ');
    if (merge.comment) return merge;
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      return node.Wrong("two tokens with one space between them");
    }
    merge.left = line.substr(0, space);
    merge.right = line.substr(space + 1);
    return merge;
  }
  CADRE_ASSIGN_OR_RETURN(const simdjson::dom::array pair, node.Array());
  if (pair.size() != 2 || pair.at(0).get(merge.left) != simdjson::SUCCESS ||
      pair.at(1).get(merge.right) != simdjson::SUCCESS) {
    return node.Wrong("an array of two strings");
  }
  return merge;
}

absl::StatusOr<int32_t> MergePart(std::string_view token, const TokenMap& vocabulary,
                                  const JsonNode& merge) {
  const auto found = vocabulary.find(token);
  if (found == vocabulary.end()) {
    return InvalidArgument("{}: {}: the token \"{}\" is not in model.vocab", merge.where,
                           simdjson::minify(merge.value), token);
  }
  return found->second;
}

absl::Status CheckOption(const JsonNode& model, std::string_view key) {
  const std::optional<JsonNode> option = model.Find(key);
  if (!option) return absl::OkStatus();
  std::string_view text;
  double number = 1;
  if (option->value.get(text) == simdjson::SUCCESS && text.empty()) return absl::OkStatus();
  if (option->value.get(number) == simdjson::SUCCESS && number == 0) return absl::OkStatus();
  return Unimplemented("{}: {}; only null is known", option->where,
                       simdjson::minify(option->value));
}

absl::StatusOr<BpeOptions> ParseOptions(const JsonNode& model, TokenizerParts* parts) {
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    CADRE_RETURN_IF_ERROR(CheckOption(model, key));
  }
  BpeOptions options{.byte_level = parts->pre_tokenizer.byte_level()};
  CADRE_ASSIGN_OR_RETURN(options.byte_fallback, model.GetBool("byte_fallback", false));
  CADRE_ASSIGN_OR_RETURN(options.fuse_unk, model.GetBool("fuse_unk", false));
  CADRE_ASSIGN_OR_RETURN(options.ignore_merges, model.GetBool("ignore_merges", false));
  if (const std::optional<JsonNode> unk = model.Find("unk_token")) {
    CADRE_ASSIGN_OR_RETURN(const std::string_view token, unk->String());
    const auto found = parts->ids.find(token);
    if (found == parts->ids.end()) return unk->Wrong("a token of the vocabulary");
    options.unk_id = found->second;
    parts->unk_id = found->second;
  }
  return options;
}

absl::Status CheckIds(const JsonNode& root, const TokenizerParts& parts, size_t used) {
  const auto size = static_cast<int64_t>(parts.tokens.size());
  if (size - static_cast<int64_t>(used) <= kMaxUnusedIds) return absl::OkStatus();
  return InvalidArgument(
      "{} model.vocab: {} entries, but the highest id is {}; at most {} ids may be unused",
      root.where, used, size - 1, kMaxUnusedIds);
}

// Makes room for `id`, refusing what leaves too many ids unused.
absl::Status GrowTo(const std::string& where, int64_t id, size_t used, TokenizerParts* parts) {
  if (id > static_cast<int64_t>(used) + kMaxUnusedIds) {
    return InvalidArgument("{}: the id {} is out of range: with {} entries ids go up to {}", where,
                           id, used, static_cast<int64_t>(used) + kMaxUnusedIds);
  }
  const size_t size = std::max(parts->tokens.size(), static_cast<size_t>(id) + 1);
  parts->tokens.resize(size);
  parts->added.resize(size);
  parts->special.resize(size);
  return absl::OkStatus();
}

}  // namespace

absl::Status LoadVocabulary(const JsonNode& root, TokenizerEntries* entries,
                            TokenizerParts* parts) {
  CADRE_ASSIGN_OR_RETURN(const JsonNode model, root.Get("model"));
  CADRE_ASSIGN_OR_RETURN(const std::string_view type, model.GetString("type", "BPE"));
  if (type != "BPE") return Unimplemented("{}.type: \"{}\"; only BPE is known", model.where, type);
  CADRE_ASSIGN_OR_RETURN(const JsonNode vocab, model.Get("vocab"));
  CADRE_ASSIGN_OR_RETURN(const simdjson::dom::object object, vocab.Object());
  size_t count = 0;
  for ([[maybe_unused]] const auto field : object) ++count;
  entries->model.reserve(count);
  parts->ids.reserve(count);
  for (const auto [token, value] : object) {
    const auto where = [&, token = token] { return fmt::format("{}[\"{}\"]", vocab.where, token); };
    int64_t id = -1;
    if (value.get(id) != simdjson::SUCCESS || id < 0 || id > kMaxId) {
      return JsonNode{value, where()}.Wrong(fmt::format("an id from 0 to {}", kMaxId));
    }
    if (token.empty()) return InvalidArgument("{}: an empty token", where());
    if (static_cast<size_t>(id) >= parts->tokens.size()) {
      CADRE_RETURN_IF_ERROR(GrowTo(where(), id, count, parts));
    }
    if (!parts->tokens[id].empty()) {
      return InvalidArgument("{}: the id {} is taken by \"{}\"", where(), id, parts->tokens[id]);
    }
    if (!entries->model.emplace(token, id).second) {
      return InvalidArgument("{}: the token comes twice", where());
    }
    parts->ids.emplace(token, id);
    parts->tokens[id] = std::string(token);
  }
  const std::optional<JsonNode> added = root.Find("added_tokens");
  if (added) {
    CADRE_ASSIGN_OR_RETURN(const simdjson::dom::array items, added->Array());
    size_t index = 0;
    for (const simdjson::dom::element item : items) {
      const JsonNode node = added->Item(item, index++);
      CADRE_ASSIGN_OR_RETURN(const AddedToken token, ParseAddedToken(node));
      CADRE_RETURN_IF_ERROR(EnterAddedToken(token, node.where, entries, parts));
    }
  }
  if (parts->ids.empty()) return InvalidArgument("{}: no entries", vocab.where);
  return CheckIds(root, *parts, parts->ids.size());
}

absl::StatusOr<AddedToken> ParseAddedToken(const JsonNode& node) {
  AddedToken token;
  CADRE_ASSIGN_OR_RETURN(token.content, node.GetString("content"));
  if (const std::optional<JsonNode> id = node.Find("id")) {
    CADRE_ASSIGN_OR_RETURN(const int64_t value, id->Integer(0, kMaxId));
    token.id = static_cast<int32_t>(value);
  } else {
    return InvalidArgument("{}: the field \"id\" is missing", node.where);
  }
  CADRE_ASSIGN_OR_RETURN(token.special, node.GetBool("special", false));
  CADRE_ASSIGN_OR_RETURN(token.normalized, node.GetBool("normalized", !token.special));
  CADRE_ASSIGN_OR_RETURN(token.lstrip, node.GetBool("lstrip", false));
  CADRE_ASSIGN_OR_RETURN(token.rstrip, node.GetBool("rstrip", false));
  CADRE_ASSIGN_OR_RETURN(token.single_word, node.GetBool("single_word", false));
  return token;
}

absl::Status EnterAddedToken(const AddedToken& token, const std::string& where,
                             TokenizerEntries* entries, TokenizerParts* parts) {
  if (token.content.empty()) return InvalidArgument("{}.content: an empty token", where);
  CADRE_RETURN_IF_ERROR(GrowTo(where, token.id, parts->ids.size(), parts));
  const auto [found, inserted] = parts->ids.emplace(token.content, token.id);
  if (found->second != token.id) {
    return InvalidArgument("{}: \"{}\" has the id {}, but {} elsewhere", where, token.content,
                           token.id, found->second);
  }
  std::string& entry = parts->tokens[token.id];
  if (inserted && !entry.empty()) {
    return InvalidArgument("{}: \"{}\" has the id {}, which is taken by \"{}\"", where,
                           token.content, token.id, entry);
  }
  entry = token.content;
  if (parts->added[token.id]) {
    std::erase_if(entries->added, [&](const AddedToken& old) { return old.id == token.id; });
  }
  parts->added[token.id] = true;
  parts->special[token.id] = token.special;
  entries->added.push_back(token);
  return absl::OkStatus();
}

absl::Status LoadMerges(const JsonNode& model, const TokenizerEntries& entries,
                        TokenizerParts* parts) {
  CADRE_ASSIGN_OR_RETURN(const BpeOptions options, ParseOptions(model, parts));
  Bpe& bpe = parts->bpe.emplace(options);
  const ByteAlphabet alphabet;
  for (const auto& [token, id] : entries.model) {
    if (!options.byte_level) {
      bpe.AddEntry(token, id);
    } else if (const std::optional<std::string> bytes = alphabet.ToBytes(token)) {
      bpe.AddEntry(*bytes, id);
    }
  }
  CADRE_ASSIGN_OR_RETURN(const JsonNode merges, model.Get("merges"));
  CADRE_ASSIGN_OR_RETURN(const simdjson::dom::array items, merges.Array());
  size_t count = 0;
  for ([[maybe_unused]] const auto item : items) ++count;
  bpe.ReserveMerges(count);
  std::vector<std::string_view> products;
  products.reserve(count);
  std::string product;
  uint32_t rank = 0;
  size_t index = 0;
  JsonNode node;
  for (const simdjson::dom::element item : items) {
    node = merges.Item(item, index++);
    CADRE_ASSIGN_OR_RETURN(const MergeSource merge, ParseMerge(node));
    if (merge.comment) continue;
    CADRE_ASSIGN_OR_RETURN(const int32_t left, MergePart(merge.left, entries.model, node));
    CADRE_ASSIGN_OR_RETURN(const int32_t right, MergePart(merge.right, entries.model, node));
    product.assign(merge.left).append(merge.right);
    CADRE_ASSIGN_OR_RETURN(const int32_t merged, MergePart(product, entries.model, node));
    bpe.AddMerge(left, right, merged, rank++);
    products.push_back(parts->tokens[merged]);
  }
  bpe.Finish(products);
  return absl::OkStatus();
}

}  // namespace cadre
