#include "training/data_sources.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <utility>
#include <vector>

#include "training/chat_tokens.h"
#include "training/document_source.h"
#include "training/indexed_documents.h"

namespace cadre {
namespace {

using Documents = std::shared_ptr<const DocumentSource>;

absl::StatusOr<Documents> TokenizeChats(const std::string& path,
                                        const std::string& tokenizer_folder) {
  if (tokenizer_folder.empty()) {
    return InvalidArgument("data.sources: {} holds chats, which need `tokenizer`", path);
  }
  CADRE_ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::Load(tokenizer_folder));
  CADRE_ASSIGN_OR_RETURN(auto chat, ChatTemplate::Load(tokenizer_folder));
  std::ifstream file(path);
  if (!file) return NotFound("{}: cannot be read", path);
  auto documents = std::make_shared<MemoryDocuments>(path);
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    auto tokens = TokenizeChatLine(*chat, *tokenizer, line);
    if (!tokens.ok()) return Annotate(tokens.status(), fmt::format("{}:{}", path, number));
    documents->Add(std::move(tokens->ids), std::move(tokens->mask));
  }
  if (documents->size() == 0) return InvalidArgument("{}: no chat in it", path);
  return documents;
}

absl::StatusOr<Documents> OpenSource(const config::DataSource& source,
                                     const std::string& tokenizer_folder) {
  if (source.path().empty()) return InvalidArgument("data.sources: a source without `path`");
  const bool indexed = std::filesystem::exists(source.path() + ".idx");
  if (source.kind() == config::SOURCE_KIND_CHAT && !indexed)
    return TokenizeChats(source.path(), tokenizer_folder);
  return OpenIndexedDocuments(source.path());
}

}  // namespace

absl::StatusOr<TrainingData> OpenTrainingData(const config::DataConfig& config,
                                              const std::string& tokenizer_folder,
                                              int64_t vocab_size) {
  if (config.sources().empty())
    return InvalidArgument("data.sources: none given, at least one is needed");
  if (!config.validation().empty() && config.validation_fraction() > 0) {
    return InvalidArgument(
        "data.validation, data.validation_fraction: at most one of them may be given");
  }
  std::vector<WeightedSource> train, validation;
  for (const config::DataSource& source : config.sources()) {
    CADRE_ASSIGN_OR_RETURN(Documents documents, OpenSource(source, tokenizer_folder));
    if (config.validation_fraction() == 0) {
      train.push_back({std::move(documents), source.weight()});
      continue;
    }
    CADRE_ASSIGN_OR_RETURN(DocumentSplit split,
                           SplitDocuments(std::move(documents), config.validation_fraction()));
    train.push_back({std::move(split.train), source.weight()});
    validation.push_back({std::move(split.validation), source.weight()});
  }
  for (const config::DataSource& source : config.validation()) {
    CADRE_ASSIGN_OR_RETURN(Documents documents, OpenSource(source, tokenizer_folder));
    validation.push_back({std::move(documents), source.weight()});
  }
  SampleStreamOptions options{.seq_len = config.seq_len(),
                              .seed = config.seed(),
                              .shuffle = config.shuffle(),
                              .vocab_size = vocab_size};
  CADRE_ASSIGN_OR_RETURN(SampleStream stream, SampleStream::Create(std::move(train), options));
  TrainingData data{std::move(stream), std::nullopt};
  if (validation.empty()) return data;
  options.shuffle = false;
  auto held_out = SampleStream::Create(std::move(validation), options);
  if (!held_out.ok()) return Annotate(held_out.status(), "data.validation");
  data.validation = *std::move(held_out);
  return data;
}

}  // namespace cadre
