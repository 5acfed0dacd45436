#include "model/tokenizer_trainer.h"

#include <simdjson.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/status.h"
#include "model/tokenizer.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_json_node.h"
#include "model/tokenizer_pair_merger.h"
#include "model/tokenizer_pre_tokenizer.h"
#include "model/tokenizer_unicode.h"

namespace cadre {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kBytes = 256;
constexpr int32_t kMaxVocabSize = 1 << 20;
constexpr int64_t kProgressEvery = 256;

// Contractions; a word with the character before it; single digits (so that numbers of any length
// are spelled the same way); punctuation with the line ends behind it; lines; spaces.
constexpr const char* kPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr const char* kChatTemplate =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}";

Json ByteLevelPart() {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", false},
          {"use_regex", false}};
}

Json PreTokenizerPart() {
  const Json split = {{"type", "Split"},
                      {"pattern", {{"Regex", kPattern}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({split, ByteLevelPart()})}};
}

absl::StatusOr<PreTokenizer> MakePreTokenizer() {
  simdjson::dom::parser parser;
  const simdjson::padded_string text(PreTokenizerPart().dump());
  simdjson::dom::element root;
  CADRE_CHECK(parser.parse(text).get(root) == simdjson::SUCCESS);
  return PreTokenizer::Parse({root, "trainer:"});
}

bool IsOneOf(const std::string& token, const std::vector<std::string>& tokens) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

absl::Status CheckOptions(const TrainBpeOptions& options) {
  const auto needed = static_cast<int64_t>(options.special_tokens.size()) + kBytes;
  if (options.vocab_size < needed || options.vocab_size > kMaxVocabSize) {
    return InvalidArgument(
        "vocab_size: {}; from {} (the 256 bytes and {} special tokens) to {} is allowed",
        options.vocab_size, needed, options.special_tokens.size(), kMaxVocabSize);
  }
  const ByteAlphabet alphabet;
  std::set<std::string> seen;
  for (int byte = 0; byte < kBytes; ++byte) {
    seen.insert(alphabet.FromBytes(std::string(1, static_cast<char>(byte))));
  }
  for (const std::string& token : options.special_tokens) {
    if (token.empty() || !IsValidUtf8(token)) {
      return InvalidArgument("special_tokens: \"{}\"; UTF-8 text that is not empty is needed",
                             ReplaceInvalidUtf8(token));
    }
    if (!seen.insert(token).second) {
      return InvalidArgument("special_tokens: \"{}\" is an entry already", token);
    }
  }
  for (const std::string* token : {&options.bos_token, &options.eos_token, &options.pad_token}) {
    if (!token->empty() && !IsOneOf(*token, options.special_tokens)) {
      return InvalidArgument("bos_token, eos_token, pad_token: \"{}\" is no special token", *token);
    }
  }
  return absl::OkStatus();
}

Json AddedTokenPart(const std::string& content) {
  return {{"content", content}, {"single_word", false}, {"lstrip", false},
          {"rstrip", false},    {"normalized", false},  {"special", true}};
}

// The vocabulary while it grows: the file's spelling of each entry by id.
struct Entries {
  std::vector<std::string> tokens;
  TokenMap ids;
  std::vector<std::string> merges;

  int32_t Add(const std::string& token) {
    const auto [found, added] = ids.try_emplace(token, static_cast<int32_t>(tokens.size()));
    if (added) tokens.push_back(token);
    return found->second;
  }
};

std::string TokenizerFile(const TrainBpeOptions& options, const Entries& entries) {
  Json added = Json::array();
  for (size_t id = 0; id < options.special_tokens.size(); ++id) {
    Json token = {{"id", id}};
    token.update(AddedTokenPart(options.special_tokens[id]));
    added.push_back(std::move(token));
  }
  Json vocab = Json::object();
  auto& fields = vocab.get_ref<Json::object_t&>();
  fields.reserve(entries.tokens.size());
  // Entries are unique, and Json's own insertion would look for each among all before it.
  for (size_t id = 0; id < entries.tokens.size(); ++id) {
    static_cast<std::vector<std::pair<const std::string, Json>>&>(fields).emplace_back(
        entries.tokens[id], id);
  }
  const Json root = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", added},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", PreTokenizerPart()},
                     {"post_processor", ByteLevelPart()},
                     {"decoder", ByteLevelPart()},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"ignore_merges", false},
                       {"vocab", std::move(vocab)},
                       {"merges", entries.merges}}}};
  return root.dump(1) + "\n";
}

std::string ConfigFile(const TrainBpeOptions& options) {
  const auto name = [](const std::string& token) { return token.empty() ? Json() : Json(token); };
  Json decoder = Json::object();
  for (size_t id = 0; id < options.special_tokens.size(); ++id) {
    decoder[std::to_string(id)] = AddedTokenPart(options.special_tokens[id]);
  }
  Json root = {
      {"tokenizer_class", "PreTrainedTokenizerFast"}, {"added_tokens_decoder", decoder},
      {"bos_token", name(options.bos_token)},         {"eos_token", name(options.eos_token)},
      {"pad_token", name(options.pad_token)},         {"unk_token", nullptr},
      {"clean_up_tokenization_spaces", false}};
  if (IsOneOf("<|im_start|>", options.special_tokens) &&
      IsOneOf("<|im_end|>", options.special_tokens)) {
    root["chat_template"] = kChatTemplate;
  }
  return root.dump(2) + "\n";
}

absl::Status WriteFile(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return Unavailable("{}: cannot be written ({} bytes)", path.string(), text.size());
  return absl::OkStatus();
}

}  // namespace

absl::Status TrainedTokenizer::Save(const std::string& folder) const {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return Unavailable("{}: cannot be made: {}", folder, error.message());
  const std::filesystem::path base(folder);
  CADRE_RETURN_IF_ERROR(WriteFile(base / "tokenizer.json", tokenizer_json));
  return WriteFile(base / "tokenizer_config.json", tokenizer_config_json);
}

struct BpeTrainer::State {
  TrainBpeOptions options;
  PreTokenizer pre_tokenizer;
  RegexScratch regex;
  PreTokenizedText work;
  absl::flat_hash_map<std::string, int64_t, StringHash, std::equal_to<>> words;
};

BpeTrainer::BpeTrainer(std::unique_ptr<State> state) : state_(std::move(state)) {}
BpeTrainer::BpeTrainer(BpeTrainer&&) noexcept = default;
BpeTrainer& BpeTrainer::operator=(BpeTrainer&&) noexcept = default;
BpeTrainer::~BpeTrainer() = default;

absl::StatusOr<BpeTrainer> BpeTrainer::Create(TrainBpeOptions options) {
  CADRE_RETURN_IF_ERROR(CheckOptions(options));
  auto state = std::make_unique<State>();
  CADRE_ASSIGN_OR_RETURN(state->pre_tokenizer, MakePreTokenizer());
  state->options = std::move(options);
  return BpeTrainer(std::move(state));
}

absl::Status BpeTrainer::AddText(std::string_view text) {
  if (!IsValidUtf8(text)) return DataLoss("the text is not valid UTF-8");
  PreTokenizedText& work = state_->work;
  work.text.assign(text);
  state_->pre_tokenizer.Apply(/*at_start=*/true, state_->regex, &work);
  for (const TextPiece& piece : work.pieces) {
    const std::string_view word =
        std::string_view(work.text).substr(piece.begin, piece.end - piece.begin);
    const auto found = state_->words.find(word);
    if (found != state_->words.end()) {
      ++found->second;
    } else {
      state_->words.emplace(std::string(word), 1);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TrainedTokenizer> BpeTrainer::Train() {
  const TrainBpeOptions& options = state_->options;
  if (state_->words.empty()) {
    return absl::FailedPreconditionError("training a tokenizer needs text, but there was none");
  }
  Entries entries;
  for (const std::string& token : options.special_tokens) entries.Add(token);
  const ByteAlphabet alphabet;
  std::vector<std::pair<char32_t, int>> bytes;
  for (int byte = 0; byte < kBytes; ++byte) {
    bytes.push_back({alphabet.ToChar(static_cast<unsigned char>(byte)), byte});
  }
  std::sort(bytes.begin(), bytes.end());
  int32_t byte_ids[kBytes];
  for (const auto& [character, byte] : bytes) {
    byte_ids[byte] = entries.Add(alphabet.FromBytes(std::string(1, static_cast<char>(byte))));
  }
  PairMerger merger;
  for (const auto& [word, count] : state_->words) {
    std::vector<int32_t> symbols;
    for (const char c : word) symbols.push_back(byte_ids[static_cast<unsigned char>(c)]);
    merger.AddWord(std::move(symbols), count);
  }
  merger.CountPairs();
  const int64_t start = static_cast<int64_t>(entries.tokens.size());
  const int64_t total = options.vocab_size - start;
  int64_t reported = -1;
  while (static_cast<int32_t>(entries.tokens.size()) < options.vocab_size) {
    const int64_t done = static_cast<int64_t>(entries.tokens.size()) - start;
    if (options.progress && done / kProgressEvery != reported) {
      reported = done / kProgressEvery;
      options.progress(done, total);
    }
    const auto pair = merger.Next();
    if (!pair || pair->count < options.min_frequency) break;
    const std::string joined = entries.tokens[pair->left] + entries.tokens[pair->right];
    if (IsOneOf(joined, options.special_tokens)) continue;
    entries.merges.push_back(entries.tokens[pair->left] + " " + entries.tokens[pair->right]);
    merger.Join(*pair, entries.Add(joined));
  }
  if (options.progress) options.progress(total, total);
  return TrainedTokenizer{TokenizerFile(options, entries), ConfigFile(options),
                          static_cast<int32_t>(entries.tokens.size())};
}

}  // namespace cadre
