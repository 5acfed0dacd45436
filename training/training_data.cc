#include "training/training_data.h"

#include <algorithm>
#include <filesystem>

#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "proto/train_config.pb.h"
#include "training/chat_tokens.h"
#include "training/indexed_documents.h"
#include "training/line_reader.h"

namespace cadre {
namespace {

constexpr size_t kMaxChatBytes = size_t{256} << 20;

absl::StatusOr<std::shared_ptr<const DocumentSource>> ReadChats(const std::string& path,
                                                                const ChatTools& tools) {
  CADRE_ASSIGN_OR_RETURN(auto reader, LineReader::Open(path));
  auto documents = std::make_shared<MemoryDocuments>(path);
  std::string line;
  while (true) {
    CADRE_ASSIGN_OR_RETURN(bool more, reader->Next(kMaxChatBytes, &line));
    if (!more) break;
    if (line.find_first_not_of(" \t\r\n") == std::string::npos) continue;
    std::string where = fmt::format("{}:{}", path, reader->line());
    if (!IsValidUtf8(line)) return DataLoss("{}: not valid UTF-8", where);
    auto chat = TokenizeChatLine(*tools.chat, *tools.tokenizer, line);
    if (!chat.ok()) return DataLoss("{}: {}", where, Message(chat.status()));
    documents->Add(std::move(chat->ids), std::move(chat->mask));
  }
  return documents;
}

// What is not there was named wrongly: starting the run again would not bring it.
absl::Status OfField(const absl::Status& status, const std::string& field) {
  if (!absl::IsNotFound(status)) return Annotate(status, field);
  return InvalidArgument("{}.path: {}", field, Message(status));
}

using DataSources = google::protobuf::RepeatedPtrField<config::DataSource>;

absl::StatusOr<std::vector<WeightedSource>> OpenAll(const DataSources& sources,
                                                    const std::string& field,
                                                    const ChatTools& tools) {
  std::vector<WeightedSource> opened;
  for (int k = 0; k < sources.size(); ++k) {
    CADRE_ASSIGN_OR_RETURN(auto documents,
                           OpenDataSource(sources[k], fmt::format("{}[{}]", field, k), tools));
    opened.push_back({std::move(documents), sources[k].weight()});
  }
  return opened;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const DocumentSource>> OpenDataSource(
    const config::DataSource& source, const std::string& field, const ChatTools& tools) {
  if (source.path().empty()) return InvalidArgument("{}.path: missing", field);
  std::error_code error;
  bool indexed = std::filesystem::exists(source.path() + ".idx", error);
  if (indexed || source.kind() == config::SOURCE_KIND_PRETRAIN) {
    auto documents = OpenIndexedDocuments(source.path());
    if (!documents.ok()) return OfField(documents.status(), field);
    if (source.kind() == config::SOURCE_KIND_CHAT && !(*documents)->masked()) {
      return InvalidArgument("{}: {} has no loss mask ({}.idx); build it with data build --chat",
                             field, source.path(), MaskPrefix(source.path()));
    }
    return documents;
  }
  if (tools.chat == nullptr || tools.tokenizer == nullptr) {
    return InvalidArgument(
        "{}: {} is a file of chats, which needs a tokenizer with a chat template", field,
        source.path());
  }
  auto documents = ReadChats(source.path(), tools);
  if (!documents.ok()) return OfField(documents.status(), field);
  return documents;
}

absl::StatusOr<TrainingData> OpenTrainingData(const config::DataConfig& config, int64_t vocab_size,
                                              const ChatTools& tools) {
  if (config.validation_size() > 0 && config.validation_fraction() > 0) {
    return InvalidArgument(
        "data.validation and data.validation_fraction {}: only one of them is allowed",
        config.validation_fraction());
  }
  CADRE_ASSIGN_OR_RETURN(auto train, OpenAll(config.sources(), "data.sources", tools));
  CADRE_ASSIGN_OR_RETURN(auto validation, OpenAll(config.validation(), "data.validation", tools));
  if (config.validation_fraction() > 0) {
    for (WeightedSource& source : train) {
      CADRE_ASSIGN_OR_RETURN(DocumentSplit split,
                             SplitDocuments(source.documents, config.validation_fraction()));
      validation.push_back({split.validation, source.weight});
      source.documents = split.train;
    }
  }
  SampleStreamOptions options{.seq_len = config.seq_len(),
                              .seed = config.seed(),
                              .shuffle = config.shuffle(),
                              .vocab_size = vocab_size};
  CADRE_ASSIGN_OR_RETURN(SampleStream stream, SampleStream::Create(std::move(train), options));
  TrainingData data{.train = std::move(stream)};
  if (!validation.empty()) {
    options.shuffle = false;
    CADRE_ASSIGN_OR_RETURN(data.validation, SampleStream::Create(std::move(validation), options));
  }
  return data;
}

}  // namespace cadre
