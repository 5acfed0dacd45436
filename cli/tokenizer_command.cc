#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/status.h"
#include "model/tokenizer.h"
#include "model/tokenizer_trainer.h"

namespace cadre::cli {
namespace {

using Json = nlohmann::ordered_json;

struct TokenizerFlags {
  std::string folder;
  bool add_special_tokens = false;
  bool parse_special = false;
  bool skip_special_tokens = false;
  bool json = false;
  std::vector<std::string> data;
  std::string output;
  TrainBpeOptions train;
};

// Reads to the end. Pipes and files alike.
absl::StatusOr<std::string> ReadStream(std::FILE* file, const std::string& name) {
  std::string text;
  char block[1 << 16];
  for (size_t size = 0; (size = std::fread(block, 1, sizeof block, file)) > 0;) {
    text.append(block, size);
  }
  if (std::ferror(file)) return DataLoss("{}: cannot be read", name);
  return text;
}

absl::Status WriteOut(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return Unavailable("standard output: cannot be written");
  }
  return absl::OkStatus();
}

// A bad file is not a wrong command line: it exits with 1.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& folder) {
  auto tokenizer = Tokenizer::Load(folder);
  if (!tokenizer.ok()) return DataLoss("{}", Message(tokenizer.status()));
  return tokenizer;
}

absl::Status CheckUtf8(const std::string& text, const std::string& name) {
  if (IsValidUtf8(text)) return absl::OkStatus();
  return DataLoss("{}: not valid UTF-8 at byte {}", name, ValidUtf8Prefix(text));
}

absl::Status Encode(const TokenizerFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(flags.folder));
  CADRE_ASSIGN_OR_RETURN(const std::string text, ReadStream(stdin, "standard input"));
  CADRE_RETURN_IF_ERROR(CheckUtf8(text, "standard input"));
  const std::vector<int32_t> ids = tokenizer->Encode(
      text, {.add_special_tokens = flags.add_special_tokens, .parse_special = flags.parse_special});
  if (flags.json) {
    Json tokens = Json::array();
    for (const int32_t id : ids) tokens.push_back(tokenizer->TokenString(id));
    return WriteOut(Json{{"ids", ids}, {"tokens", std::move(tokens)}}.dump() + "\n");
  }
  std::string line;
  for (const int32_t id : ids) {
    if (!line.empty()) line += ' ';
    line += std::to_string(id);
  }
  return WriteOut(line + "\n");
}

absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& text, int32_t vocab_size) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  std::vector<int32_t> ids;
  for (size_t begin = text.find_first_not_of(kSpace); begin != std::string::npos;) {
    const size_t end = std::min(text.find_first_of(kSpace, begin), text.size());
    int32_t id = -1;
    const auto [stop, error] = std::from_chars(text.data() + begin, text.data() + end, id);
    if (error != std::errc() || stop != text.data() + end || id < 0 || id >= vocab_size) {
      return DataLoss("standard input: id {}: \"{}\"; a number from 0 to {} is needed", ids.size(),
                      text.substr(begin, std::min<size_t>(end - begin, 40)), vocab_size - 1);
    }
    ids.push_back(id);
    begin = text.find_first_not_of(kSpace, end);
  }
  return ids;
}

absl::Status Decode(const TokenizerFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(flags.folder));
  CADRE_ASSIGN_OR_RETURN(const std::string input, ReadStream(stdin, "standard input"));
  CADRE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ParseIds(input, tokenizer->vocab_size()));
  const std::string text = tokenizer->Decode(ids, flags.skip_special_tokens);
  return WriteOut(flags.json ? Json{{"text", text}}.dump() + "\n" : text);
}

// Gives the trainer each line's "text".
absl::Status AddJsonl(const std::string& content, const std::string& path, BpeTrainer* trainer) {
  size_t number = 0;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object() || !row.contains("text") || !row["text"].is_string()) {
      return DataLoss("{}:{}: an object with a string \"text\" is needed", path, number);
    }
    CADRE_RETURN_IF_ERROR(trainer->AddText(row["text"].get_ref<const std::string&>()));
  }
  return absl::OkStatus();
}

absl::Status AddFile(const std::string& path, BpeTrainer* trainer) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return NotFound("{}: cannot be opened", path);
  auto content = ReadStream(file, path);
  std::fclose(file);
  CADRE_RETURN_IF_ERROR(content.status());
  CADRE_RETURN_IF_ERROR(CheckUtf8(*content, path));
  if (path.ends_with(".jsonl")) return AddJsonl(*content, path, trainer);
  return trainer->AddText(*content);
}

absl::Status Train(TokenizerFlags flags) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  if (terminal) {
    flags.train.progress = [](int64_t done, int64_t total) {
      std::fprintf(stderr, "\rmerges: %lld of %lld%s", static_cast<long long>(done),
                   static_cast<long long>(total), done == total ? "\n" : "");
    };
  }
  CADRE_ASSIGN_OR_RETURN(BpeTrainer trainer, BpeTrainer::Create(flags.train));
  for (const std::string& path : flags.data) CADRE_RETURN_IF_ERROR(AddFile(path, &trainer));
  CADRE_ASSIGN_OR_RETURN(const TrainedTokenizer trained, trainer.Train());
  CADRE_RETURN_IF_ERROR(trained.Save(flags.output));
  if (flags.json) {
    return WriteOut(Json{{"output", flags.output}, {"vocab_size", trained.vocab_size}}.dump() +
                    "\n");
  }
  return WriteOut(fmt::format("{}: a byte-level BPE tokenizer of {} entries\n", flags.output,
                              trained.vocab_size));
}

void AddEncode(CLI::App& parent, std::shared_ptr<TokenizerFlags> flags, absl::Status* status) {
  CLI::App* command =
      parent.add_subcommand("encode", "Print the ids of the text on standard input, on one line");
  command->add_option("--tokenizer", flags->folder, "Folder with tokenizer.json")->required();
  command->add_flag("--add-special-tokens", flags->add_special_tokens,
                    "Add what the model puts around a text (BOS, EOS)");
  command->add_flag("--parse-special", flags->parse_special,
                    "Read special strings in the text as special tokens");
  command->add_flag("--json", flags->json, "Print {\"ids\", \"tokens\"}");
  command->callback([flags, status] { *status = Encode(*flags); });
}

void AddDecode(CLI::App& parent, std::shared_ptr<TokenizerFlags> flags, absl::Status* status) {
  CLI::App* command =
      parent.add_subcommand("decode", "Print the text of the ids on standard input, exactly");
  command->add_option("--tokenizer", flags->folder, "Folder with tokenizer.json")->required();
  command->add_flag("--skip-special-tokens", flags->skip_special_tokens,
                    "Leave special tokens out of the text");
  command->add_flag("--json", flags->json, "Print {\"text\"}");
  command->callback([flags, status] { *status = Decode(*flags); });
}

void AddTrain(CLI::App& parent, std::shared_ptr<TokenizerFlags> flags, absl::Status* status) {
  CLI::App* command = parent.add_subcommand("train", "Make a byte-level BPE tokenizer from text");
  command->add_option("--data", flags->data, "Text files, or .jsonl files with a \"text\" field")
      ->required();
  command->add_option("--vocab-size", flags->train.vocab_size, "Entries, special tokens included")
      ->capture_default_str();
  command->add_option("--output", flags->output, "Folder to write")->required();
  command
      ->add_option("--special-token", flags->train.special_tokens,
                   "Special tokens, in the order of their ids")
      ->capture_default_str();
  command->add_option("--bos-token", flags->train.bos_token, "One of them, or nothing")
      ->capture_default_str();
  command->add_option("--eos-token", flags->train.eos_token, "One of them, or nothing")
      ->capture_default_str();
  command->add_option("--pad-token", flags->train.pad_token, "One of them, or nothing")
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print {\"output\", \"vocab_size\"}");
  command->callback([flags, status] { *status = Train(*flags); });
}

}  // namespace

void AddTokenizerCommand(CLI::App& root, absl::Status* status) {
  CLI::App* command = root.add_subcommand("tokenizer", "Encode, decode, train tokenizers");
  command->require_subcommand(1);
  AddEncode(*command, std::make_shared<TokenizerFlags>(), status);
  AddDecode(*command, std::make_shared<TokenizerFlags>(), status);
  AddTrain(*command, std::make_shared<TokenizerFlags>(), status);
}

}  // namespace cadre::cli
