#include "training/training_data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "model/tokenizer_trainer.h"
#include "proto/train_config.pb.h"
#include "training/data_build.h"

namespace cadre {
namespace {

using testing::HasSubstr;

class TrainingDataTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = (std::filesystem::temp_directory_path() / fmt::format("cadre_source_{}", getpid()))
                  .string();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    auto trainer = BpeTrainer::Create({.vocab_size = 270});
    ASSERT_TRUE(trainer.ok() && trainer->AddText("some words and some more words").ok());
    ASSERT_TRUE(trainer->Train()->Save(folder_).ok());
    tokenizer_ = std::move(*Tokenizer::Load(folder_));
    chat_ = std::move(*ChatTemplate::Load(folder_));
    tools_ = {chat_.get(), tokenizer_.get()};
    std::string text;
    for (int d = 0; d < 50; ++d) text += fmt::format("document {} of some words\n\n", d);
    Build("text", {Write("text.txt", text)}, nullptr);
    std::string chats;
    for (int d = 0; d < 20; ++d) {
      chats += fmt::format(R"({{"messages": [{{"role": "user", "content": "question {}"}}, )"
                           R"({{"role": "assistant", "content": "some answer {}"}}]}})"
                           "\n",
                           d, d);
    }
    chats_ = Write("chats.jsonl", chats);
    Build("chats", {chats_}, chat_.get());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << bytes;
    return folder_ + "/" + name;
  }
  void Build(const std::string& name, std::vector<std::string> inputs, const ChatTemplate* chat) {
    DataBuildOptions options{
        .inputs = std::move(inputs), .output = folder_ + "/" + name, .chat = chat};
    auto built = BuildData(options, *tokenizer_, [](const DataBuildProgress&) {});
    CADRE_CHECK(built.ok(), "{}", Message(built.status()));
  }
  config::DataConfig Config(const std::string& name, config::SourceKind kind) {
    config::DataConfig config;
    config.set_seq_len(32);
    auto* source = config.add_sources();
    source->set_path(folder_ + "/" + name);
    source->set_kind(kind);
    return config;
  }
  std::string Error(const config::DataConfig& config) {
    auto data = OpenTrainingData(config, 0, tools_);
    return data.ok() ? "" : Message(data.status());
  }

  std::string folder_, chats_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
  ChatTools tools_;
};

TEST_F(TrainingDataTest, HoldsOutDocuments) {
  auto config = Config("text", config::SOURCE_KIND_PRETRAIN);
  config.set_validation_fraction(0.2);
  auto data = OpenTrainingData(config, tokenizer_->vocab_size(), tools_);
  ASSERT_TRUE(data.ok()) << Message(data.status());
  ASSERT_TRUE(data->validation.has_value());
  PackedBatch batch;
  ASSERT_TRUE(data->validation->Append(0, &batch).ok());
  // The first held-out document is the 41st, and comes first.
  EXPECT_THAT(tokenizer_->Decode(batch.ids, false), testing::StartsWith("document 40 of some"));
  std::string trained;
  for (int64_t i = 0; i < data->train.epoch_rows(); ++i) {
    PackedBatch row;
    ASSERT_TRUE(data->train.Append(i, &row).ok());
    trained += tokenizer_->Decode(row.ids, false);
  }
  EXPECT_THAT(trained, testing::Not(HasSubstr("document 45")));
}

TEST_F(TrainingDataTest, ChatsFromAFileAndFromABuiltPairAreTheSame) {
  auto built = OpenTrainingData(Config("chats", config::SOURCE_KIND_CHAT), 0, tools_);
  auto read = OpenTrainingData(Config("chats.jsonl", config::SOURCE_KIND_CHAT), 0, tools_);
  ASSERT_TRUE(built.ok() && read.ok()) << Message(built.status()) << Message(read.status());
  for (int64_t i = 0; i < 20; ++i) {
    PackedBatch a, b;
    ASSERT_TRUE(built->train.Append(i, &a).ok());
    ASSERT_TRUE(read->train.Append(i, &b).ok());
    ASSERT_EQ(a.ids, b.ids);
    ASSERT_EQ(a.targets, b.targets);
    ASSERT_GT(a.loss_tokens, 0);
    ASSERT_LT(a.loss_tokens, 32);
  }
}

TEST_F(TrainingDataTest, ErrorsNameTheField) {
  EXPECT_THAT(Error({}), HasSubstr("data.sources"));
  EXPECT_THAT(Error(Config("none", config::SOURCE_KIND_PRETRAIN)), HasSubstr("data.sources[0]"));
  EXPECT_THAT(Error(Config("text", config::SOURCE_KIND_CHAT)), HasSubstr("no loss mask"));
  auto both = Config("text", config::SOURCE_KIND_PRETRAIN);
  both.set_validation_fraction(0.1);
  *both.add_validation() = both.sources(0);
  EXPECT_THAT(Error(both), HasSubstr("only one"));
  auto long_rows = Config("text", config::SOURCE_KIND_PRETRAIN);
  long_rows.set_seq_len(1 << 20);
  EXPECT_THAT(Error(long_rows), HasSubstr("data.seq_len"));
  tools_ = {};
  EXPECT_THAT(Error(Config("chats.jsonl", config::SOURCE_KIND_CHAT)), HasSubstr("chat template"));
}

}  // namespace
}  // namespace cadre
