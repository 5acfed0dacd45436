#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/as_data.h"
#include "cli/commands.h"
#include "core/progress.h"
#include "core/status.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "training/data_build.h"

namespace cadre::cli {
namespace {

struct DataFlags {
  std::string tokenizer;
  std::string split = "blank-lines";
  bool chat = false;
  bool json = false, has_lines = false;
  DataBuildOptions build;
};

void Report(const DataBuildProgress& progress) {
  double share = progress.bytes_total > 0 ? 100.0 * static_cast<double>(progress.bytes_done) /
                                                static_cast<double>(progress.bytes_total)
                                          : 0.0;
  std::fprintf(stderr, "\r%3.0f%% | %s documents | %s tokens\x1b[K", share,
               FormatCount(static_cast<double>(progress.documents)).c_str(),
               FormatCount(static_cast<double>(progress.tokens)).c_str());
}

absl::StatusOr<TextSplit> ParseSplit(const DataFlags& flags) {
  if (!flags.build.separator.empty()) return TextSplit::kSeparator;
  if (flags.has_lines) return TextSplit::kLines;
  if (flags.split == "blank-lines") return TextSplit::kBlankLines;
  if (flags.split == "file") return TextSplit::kFile;
  return InvalidArgument("--split: {}; blank-lines or file is allowed", flags.split);
}

absl::Status Build(DataFlags flags) {
  CADRE_ASSIGN_OR_RETURN(flags.build.split, ParseSplit(flags));
  CADRE_ASSIGN_OR_RETURN(const auto tokenizer, AsData(Tokenizer::Load(flags.tokenizer)));
  std::unique_ptr<ChatTemplate> chat;
  if (flags.chat) {
    CADRE_ASSIGN_OR_RETURN(chat, AsData(ChatTemplate::Load(flags.tokenizer)));
    flags.build.chat = chat.get();
  }
  const bool terminal = isatty(STDERR_FILENO) != 0;
  auto built = BuildData(flags.build, *tokenizer, [terminal](const DataBuildProgress& progress) {
    if (terminal) Report(progress);
  });
  if (terminal) std::fputc('\n', stderr);
  CADRE_RETURN_IF_ERROR(built.status());
  if (flags.json) {
    nlohmann::ordered_json json = {{"output", flags.build.output},
                                   {"documents", built->documents},
                                   {"tokens", built->tokens},
                                   {"bytes", built->bytes_done}};
    if (flags.chat) json["loss_tokens"] = built->loss_tokens;
    std::printf("%s\n", json.dump().c_str());
    return absl::OkStatus();
  }
  std::string line = fmt::format("{}.bin, {}.idx: {} documents, {} tokens", flags.build.output,
                                 flags.build.output, built->documents, built->tokens);
  if (flags.chat) line += fmt::format(", {} of them in the loss", built->loss_tokens);
  std::printf("%s\n", line.c_str());
  return absl::OkStatus();
}

}  // namespace

void AddDataCommand(CLI::App& root, absl::Status* status) {
  CLI::App* data = root.add_subcommand("data", "Token data for training");
  data->require_subcommand(1);
  CLI::App* build =
      data->add_subcommand("build", "Text, JSONL or chats into PREFIX.bin and PREFIX.idx");
  auto flags = std::make_shared<DataFlags>();
  build->add_option("--tokenizer", flags->tokenizer, "Folder with tokenizer.json")->required();
  build
      ->add_option("--input", flags->build.inputs,
                   "Text or JSONL files, plain or zstd; *.jsonl and *.jsonl.zst are JSONL")
      ->required();
  build->add_option("--output", flags->build.output, "Prefix of the files to write")->required();
  auto* field = build->add_option("--jsonl-field", flags->build.jsonl_field,
                                  "All inputs are JSONL, and this key holds the text");
  build->add_flag("--chat", flags->chat,
                  "Inputs are JSONL with `messages`, rendered by the tokenizer's chat template; "
                  "the loss counts assistant turns");
  build->add_flag("--append-eos", flags->build.append_eos,
                  "End each document with the tokenizer's end-of-sequence token");
  build->add_option("--split", flags->split, "What ends a document of text: blank-lines or file");
  build->add_option("--document-separator", flags->build.separator,
                    "A line that ends a document of text, instead of --split");
  CLI::Option* lines =
      build->add_option("--lines-per-document", flags->build.lines,
                        "Every so many lines of text are a document, instead of --split");
  build->add_flag("--json", flags->json, "Print one JSON document");
  build->callback([flags, field, lines, status] {
    flags->build.jsonl = field->count() > 0;
    flags->has_lines = lines->count() > 0;
    *status = Build(*flags);
  });
}

}  // namespace cadre::cli
