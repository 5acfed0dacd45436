#include <filesystem>
#include <fstream>

#include "core/status.h"
#include "model/gguf_model.h"
#include "model/tokenizer.h"
#include "model/tokenizer_load.h"
#include "model/tokenizer_unicode.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr size_t kMaxSmallFileBytes = size_t{16} << 20;
constexpr size_t kMaxJsonDepth = 64;

// The texts that make a tokenizer, and what messages call them.
struct Sources {
  std::string tokenizer_name, tokenizer;
  std::string config_name, config;
  std::string map_name, map;
  std::string chat_template;
};

absl::StatusOr<std::string> ReadText(const fs::path& path, size_t limit) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error) return NotFound("{}: {}", path.string(), error.message());
  if (size > limit) {
    return InvalidArgument("{}: {} bytes; at most {} are allowed", path.string(), size, limit);
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(size, '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(size))) {
    return DataLoss("{}: cannot be read to its end ({} bytes)", path.string(), size);
  }
  return text;
}

// As ReadText, empty where there is no such file.
absl::StatusOr<std::string> ReadOptional(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return std::string();
  return ReadText(path, kMaxSmallFileBytes);
}

absl::StatusOr<JsonNode> ParseJson(simdjson::dom::parser& parser, const std::string& name,
                                   std::string_view text) {
  const simdjson::error_code allocated =
      parser.allocate(std::max(text.size(), size_t{64}), kMaxJsonDepth);
  simdjson::dom::element root;
  const simdjson::error_code error = allocated != simdjson::SUCCESS
                                         ? allocated
                                         : parser.parse(simdjson::padded_string(text)).get(root);
  if (error != simdjson::SUCCESS) {
    return InvalidArgument("{}: not valid JSON: {}", name, simdjson::error_message(error));
  }
  if (!root.is_object()) return JsonNode{root, name}.Wrong("an object");
  return JsonNode{root, name + ":"};
}

void FillBytes(TokenizerParts* parts) {
  RegexScratch scratch;
  parts->bytes.resize(parts->tokens.size());
  for (size_t id = 0; id < parts->tokens.size(); ++id) {
    if (parts->tokens[id].empty()) continue;
    parts->bytes[id] =
        parts->decoder->Bytes(parts->tokens[id], parts->added[id], /*first=*/false, scratch);
  }
}

void BuildMatchers(const std::vector<AddedToken>& added, TokenizerParts* parts) {
  RegexScratch scratch;
  std::string normalized, spare;
  for (const AddedToken& token : added) {
    if (token.special) {
      parts->raw_and_special.Add(token.content, token);
    } else if (token.normalized) {
      // Such a token stands for the normalized text that it was found as.
      normalized = token.content;
      parts->normalizer.Apply(scratch, &normalized, &spare);
      parts->normalized_tokens.Add(normalized, token);
      parts->bytes[token.id] = parts->decoder->Bytes(normalized, true, false, scratch);
    } else {
      parts->raw_tokens.Add(token.content, token);
      parts->raw_and_special.Add(token.content, token);
    }
  }
}

absl::Status LoadPipeline(const JsonNode& root, TokenizerParts* parts) {
  if (const auto node = root.Find("normalizer")) {
    CADRE_ASSIGN_OR_RETURN(parts->normalizer, Normalizer::Parse(*node));
  }
  if (const auto node = root.Find("pre_tokenizer")) {
    CADRE_ASSIGN_OR_RETURN(parts->pre_tokenizer, PreTokenizer::Parse(*node));
  }
  parts->decoder.emplace(parts->pre_tokenizer.byte_level());
  if (const auto node = root.Find("decoder")) {
    CADRE_ASSIGN_OR_RETURN(parts->decoder, TokenDecoder::Parse(*node));
  }
  if (const auto node = root.Find("post_processor")) return LoadPostProcessor(*node, parts);
  return absl::OkStatus();
}

absl::Status LoadConfigs(const Sources& sources, TokenizerEntries* entries, TokenizerParts* parts) {
  parts->chat_template = sources.chat_template;
  simdjson::dom::parser parser;
  if (!sources.config.empty()) {
    CADRE_ASSIGN_OR_RETURN(const JsonNode config,
                           ParseJson(parser, sources.config_name, sources.config));
    CADRE_RETURN_IF_ERROR(LoadConfig(config, entries, parts));
    CADRE_RETURN_IF_ERROR(LoadConfigBosEos(config, parts));
  }
  if (!sources.map.empty()) {
    CADRE_ASSIGN_OR_RETURN(const JsonNode map, ParseJson(parser, sources.map_name, sources.map));
    CADRE_RETURN_IF_ERROR(LoadConfig(map, entries, parts));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Build(const Sources& sources) {
  simdjson::dom::parser parser;
  CADRE_ASSIGN_OR_RETURN(const JsonNode root,
                         ParseJson(parser, sources.tokenizer_name, sources.tokenizer));
  auto parts = std::make_unique<TokenizerParts>();
  TokenizerEntries entries;
  CADRE_RETURN_IF_ERROR(LoadVocabulary(root, &entries, parts.get()));
  CADRE_RETURN_IF_ERROR(LoadPipeline(root, parts.get()));
  CADRE_ASSIGN_OR_RETURN(const JsonNode model, root.Get("model"));
  CADRE_RETURN_IF_ERROR(LoadMerges(model, entries, parts.get()));
  CADRE_RETURN_IF_ERROR(LoadConfigs(sources, &entries, parts.get()));
  FillBytes(parts.get());
  BuildMatchers(entries.added, parts.get());
  return std::make_unique<Tokenizer>(std::move(parts));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  if (IsGguf(model_dir)) {
    CADRE_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(model_dir));
    CADRE_ASSIGN_OR_RETURN(const GgufTokenizerFiles files, GgufTokenizer(file));
    return Parse(model_dir, files.tokenizer, files.config);
  }
  const fs::path folder(model_dir);
  Sources sources;
  sources.tokenizer_name = (folder / "tokenizer.json").string();
  sources.config_name = (folder / "tokenizer_config.json").string();
  sources.map_name = (folder / "special_tokens_map.json").string();
  CADRE_ASSIGN_OR_RETURN(sources.tokenizer, ReadText(sources.tokenizer_name, kMaxFileBytes));
  CADRE_ASSIGN_OR_RETURN(sources.config, ReadOptional(sources.config_name));
  CADRE_ASSIGN_OR_RETURN(sources.map, ReadOptional(sources.map_name));
  CADRE_ASSIGN_OR_RETURN(sources.chat_template, ReadOptional(folder / "chat_template.jinja"));
  return Build(sources);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(const std::string& name,
                                                            std::string_view tokenizer_json,
                                                            std::string_view config_json) {
  Sources sources;
  sources.tokenizer_name = name;
  sources.tokenizer = std::string(tokenizer_json);
  sources.config_name = name + " (config)";
  sources.config = std::string(config_json);
  return Build(sources);
}

}  // namespace cadre
