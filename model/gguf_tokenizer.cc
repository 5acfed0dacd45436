#include <algorithm>
#include <unordered_map>

#include <nlohmann/json.hpp>

#include "model/gguf_model.h"

namespace cadre {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxTokenBytes = 4096;
// Longer entries of a SentencePiece vocabulary are not put together from others.
constexpr size_t kMaxMergedBytes = 256;

// Values of tokenizer.ggml.token_type.
enum TokenType : int { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4 };

struct Vocabulary {
  std::vector<std::string_view> tokens;
  std::vector<double> types, scores;  // may be empty

  int TypeOf(size_t id) const { return id < types.size() ? static_cast<int>(types[id]) : kNormal; }
};

absl::StatusOr<Vocabulary> ReadVocabulary(const GgufFile& file) {
  Vocabulary vocabulary;
  CADRE_ASSIGN_OR_RETURN(vocabulary.tokens, file.GetStrings("tokenizer.ggml.tokens"));
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::string_view token = vocabulary.tokens[id];
    if (token.size() > kMaxTokenBytes || !IsValidUtf8(token)) {
      return InvalidArgument(
          "{}: tokenizer.ggml.tokens: token {} is {}", file.name(), id,
          token.size() > kMaxTokenBytes ? "longer than 4096 bytes" : "not valid UTF-8");
    }
  }
  for (auto [key, values] : {std::pair{"tokenizer.ggml.token_type", &vocabulary.types},
                             std::pair{"tokenizer.ggml.scores", &vocabulary.scores}}) {
    if (!file.Has(key)) continue;
    CADRE_ASSIGN_OR_RETURN(*values, file.GetNumbers(key));
    if (values->size() != vocabulary.tokens.size()) {
      return InvalidArgument("{}: {}: {} values for {} tokens", file.name(), key, values->size(),
                             vocabulary.tokens.size());
    }
  }
  return vocabulary;
}

Json VocabularyJson(const Vocabulary& vocabulary) {
  Json json = Json::object();
  // The vector beneath: as an object it would look for each key among all before it.
  std::vector<std::pair<const std::string, Json>>& entries = json.get_ref<Json::object_t&>();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    entries.emplace_back(std::string(vocabulary.tokens[id]), id);
  }
  return json;
}

Json AddedTokens(const Vocabulary& vocabulary) {
  Json added = Json::array();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const int type = vocabulary.TypeOf(id);
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    added.push_back({{"id", id},
                     {"content", std::string(vocabulary.tokens[id])},
                     {"special", type != kUserDefined},
                     {"normalized", false}});
  }
  return added;
}

constexpr char kLlamaPattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwenPattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct PreTokenizerKind {
  std::string_view name;
  const char* pattern;  // null: ByteLevel's own
  bool nfc;
  bool ignore_merges;
  bool add_bos;
};

constexpr PreTokenizerKind kPreTokenizers[] = {{"llama-bpe", kLlamaPattern, false, true, true},
                                               {"llama3", kLlamaPattern, false, true, true},
                                               {"llama-v3", kLlamaPattern, false, true, true},
                                               {"qwen2", kQwenPattern, true, false, false},
                                               {"gpt-2", nullptr, false, false, false}};

absl::StatusOr<PreTokenizerKind> FindPreTokenizer(const GgufFile& file) {
  CADRE_ASSIGN_OR_RETURN(const std::string_view name, file.GetString("tokenizer.ggml.pre"));
  for (const PreTokenizerKind& kind : kPreTokenizers) {
    if (kind.name == name) return kind;
  }
  return Unimplemented("{}: tokenizer.ggml.pre '{}' (allowed: llama-bpe, qwen2, gpt-2)",
                       file.name(), name);
}

Json PreTokenizerJson(const PreTokenizerKind& kind) {
  Json bytes = {{"type", "ByteLevel"},
                {"add_prefix_space", false},
                {"trim_offsets", false},
                {"use_regex", kind.pattern == nullptr}};
  if (kind.pattern == nullptr) return bytes;
  Json split = {{"type", "Split"},
                {"pattern", {{"Regex", kind.pattern}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({split, bytes})}};
}

absl::StatusOr<Json> ByteLevelJson(const GgufFile& file, const Vocabulary& vocabulary,
                                   const PreTokenizerKind& kind) {
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string_view> merges,
                         file.GetStrings("tokenizer.ggml.merges"));
  Json list = Json::array();
  for (const std::string_view merge : merges) {
    if (!IsValidUtf8(merge)) {
      return InvalidArgument("{}: tokenizer.ggml.merges: not valid UTF-8", file.name());
    }
    list.push_back(std::string(merge));
  }
  return Json{{"added_tokens", AddedTokens(vocabulary)},
              {"normalizer", kind.nfc ? Json{{"type", "NFC"}} : Json()},
              {"pre_tokenizer", PreTokenizerJson(kind)},
              {"decoder", {{"type", "ByteLevel"}}},
              {"model",
               {{"type", "BPE"},
                {"ignore_merges", kind.ignore_merges},
                {"vocab", VocabularyJson(vocabulary)},
                {"merges", std::move(list)}}}};
}

// SentencePiece joins the neighbours whose whole has the highest score: every way to put an entry
// together from two others is a merge, in the order of the scores.
Json MergesOfScores(const Vocabulary& vocabulary) {
  std::unordered_map<std::string_view, size_t> ids;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) ids.emplace(vocabulary.tokens[id], id);
  struct Merge {
    double score;
    std::string_view left, right;
  };
  std::vector<Merge> merges;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::string_view token = vocabulary.tokens[id];
    if (vocabulary.TypeOf(id) != kNormal || token.size() > kMaxMergedBytes) continue;
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const std::string_view left = token.substr(0, cut), right = token.substr(cut);
      if (!ids.contains(left) || !ids.contains(right)) continue;
      merges.push_back({vocabulary.scores[id], left, right});
    }
  }
  std::stable_sort(merges.begin(), merges.end(),
                   [](const Merge& a, const Merge& b) { return a.score > b.score; });
  Json list = Json::array();
  for (const Merge& merge : merges) {
    list.push_back(Json::array({std::string(merge.left), std::string(merge.right)}));
  }
  return list;
}

absl::StatusOr<Json> SentencePieceJson(const GgufFile& file, const Vocabulary& vocabulary) {
  if (vocabulary.scores.empty() && !vocabulary.tokens.empty()) {
    return NotFound("{}: tokenizer.ggml.scores is missing", file.name());
  }
  CADRE_ASSIGN_OR_RETURN(const bool space, file.GetBool("tokenizer.ggml.add_space_prefix", true));
  const char* mark = "\u2581";
  Json normalizers = Json::array(), decoders = Json::array();
  if (space) normalizers.push_back({{"type", "Prepend"}, {"prepend", mark}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", mark}});
  decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (space) {
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  Json model = {{"type", "BPE"},
                {"byte_fallback", true},
                {"fuse_unk", true},
                {"vocab", VocabularyJson(vocabulary)},
                {"merges", MergesOfScores(vocabulary)}};
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.TypeOf(id) == kUnknown) model["unk_token"] = std::string(vocabulary.tokens[id]);
  }
  return Json{{"added_tokens", AddedTokens(vocabulary)},
              {"normalizer", {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}}},
              {"decoder", {{"type", "Sequence"}, {"decoders", std::move(decoders)}}},
              {"model", std::move(model)}};
}

// Names of the special ids.
absl::StatusOr<Json> SpecialNames(const GgufFile& file,
                                  const std::vector<std::string_view>& tokens) {
  Json names = Json::object();
  for (auto [key, name] : {std::pair{"bos", "bos_token"}, std::pair{"eos", "eos_token"},
                           std::pair{"unknown", "unk_token"}, std::pair{"padding", "pad_token"}}) {
    const std::string id_key = fmt::format("tokenizer.ggml.{}_token_id", key);
    if (!file.Has(id_key)) continue;
    const auto last = static_cast<int64_t>(tokens.size()) - 1;
    CADRE_ASSIGN_OR_RETURN(const int64_t id, file.GetInteger(id_key, 0, last));
    const std::string_view token = tokens[static_cast<size_t>(id)];
    if (!IsValidUtf8(token)) return InvalidArgument("{}: {}: not valid UTF-8", file.name(), id_key);
    names[name] = std::string(token);
  }
  return names;
}

absl::StatusOr<std::string> TemplateOf(const GgufFile& file) {
  if (!file.Has("tokenizer.chat_template")) return std::string();
  CADRE_ASSIGN_OR_RETURN(const std::string_view source, file.GetString("tokenizer.chat_template"));
  if (!IsValidUtf8(source)) {
    return InvalidArgument("{}: tokenizer.chat_template: not valid UTF-8", file.name());
  }
  return std::string(source);
}

// The names, and whether they are put around a text.
absl::StatusOr<Json> ConfigJson(const GgufFile& file, const Vocabulary& vocabulary, bool add_bos) {
  CADRE_ASSIGN_OR_RETURN(Json config, SpecialNames(file, vocabulary.tokens));
  CADRE_ASSIGN_OR_RETURN(config["add_bos_token"],
                         file.GetBool("tokenizer.ggml.add_bos_token", add_bos));
  CADRE_ASSIGN_OR_RETURN(config["add_eos_token"],
                         file.GetBool("tokenizer.ggml.add_eos_token", false));
  CADRE_ASSIGN_OR_RETURN(std::string source, TemplateOf(file));
  if (!source.empty()) config["chat_template"] = std::move(source);
  return config;
}

}  // namespace

absl::StatusOr<GgufChat> GgufChatOf(const GgufFile& file) {
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string_view> tokens,
                         file.GetStrings("tokenizer.ggml.tokens"));
  CADRE_ASSIGN_OR_RETURN(const Json names, SpecialNames(file, tokens));
  CADRE_ASSIGN_OR_RETURN(std::string source, TemplateOf(file));
  return GgufChat{std::move(source), names.dump()};
}

absl::StatusOr<GgufTokenizerFiles> GgufTokenizer(const GgufFile& file) {
  CADRE_ASSIGN_OR_RETURN(const std::string_view kind, file.GetString("tokenizer.ggml.model"));
  CADRE_ASSIGN_OR_RETURN(const Vocabulary vocabulary, ReadVocabulary(file));
  if (kind == "llama") {
    CADRE_ASSIGN_OR_RETURN(const Json json, SentencePieceJson(file, vocabulary));
    CADRE_ASSIGN_OR_RETURN(const Json config, ConfigJson(file, vocabulary, true));
    return GgufTokenizerFiles{json.dump(), config.dump()};
  }
  if (kind != "gpt2") {
    return Unimplemented("{}: tokenizer.ggml.model '{}' (allowed: gpt2, llama)", file.name(), kind);
  }
  CADRE_ASSIGN_OR_RETURN(const PreTokenizerKind pre, FindPreTokenizer(file));
  CADRE_ASSIGN_OR_RETURN(const Json json, ByteLevelJson(file, vocabulary, pre));
  CADRE_ASSIGN_OR_RETURN(const Json config, ConfigJson(file, vocabulary, pre.add_bos));
  return GgufTokenizerFiles{json.dump(), config.dump()};
}

}  // namespace cadre
