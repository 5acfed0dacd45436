#include "training/data_build.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zstd.h>

#include <filesystem>
#include <fstream>

#include "core/file.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "model/tokenizer_trainer.h"
#include "training/chat_tokens.h"
#include "training/indexed_documents.h"
#include "training/line_reader.h"

namespace cadre {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const TrainedTokenizer& Trained() {
  static const TrainedTokenizer trained = [] {
    auto trainer = BpeTrainer::Create({.vocab_size = 320});
    CADRE_CHECK(trainer.ok());
    for (int i = 0; i < 20; ++i) {
      CADRE_CHECK(trainer->AddText("the cat and the dog sat on the mat, then they ran\n").ok());
    }
    return *trainer->Train();
  }();
  return trained;
}

class DataBuild : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        (std::filesystem::temp_directory_path() / fmt::format("cadre_data_{}", getpid())).string();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    ASSERT_TRUE(Trained().Save(folder_ + "/tokenizer").ok());
    auto tokenizer = Tokenizer::Load(folder_ + "/tokenizer");
    ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
    tokenizer_ = std::move(*tokenizer);
    options_.output = folder_ + "/out";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << bytes;
    return folder_ + "/" + name;
  }
  absl::StatusOr<DataBuildProgress> Build(std::vector<std::string> inputs) {
    options_.inputs = std::move(inputs);
    return BuildData(options_, *tokenizer_, [](const DataBuildProgress&) {});
  }
  // The documents' text; special tokens included.
  std::vector<std::string> Texts() {
    auto documents = OpenIndexedDocuments(options_.output);
    CADRE_CHECK(documents.ok(), "{}", Message(documents.status()));
    std::vector<std::string> texts;
    for (int64_t d = 0; d < (*documents)->size(); ++d) {
      std::vector<int32_t> ids((*documents)->Length(d));
      CADRE_CHECK((*documents)->Read(d, 0, ids).ok());
      texts.push_back(tokenizer_->Decode(ids, false));
    }
    return texts;
  }

  std::string folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  DataBuildOptions options_;
};

TEST_F(DataBuild, SplitsTextAtBlankLines) {
  auto built =
      Build({Write("a.txt", "\n\nthe cat\nsat\n \n\t\nthe dog\r\n\n\n"), Write("b.txt", "end")});
  ASSERT_TRUE(built.ok()) << Message(built.status());
  EXPECT_EQ(built->documents, 3);
  EXPECT_THAT(Texts(), ElementsAre("the cat\nsat\n", "the dog\r\n", "end"));
}

TEST_F(DataBuild, OtherSplits) {
  std::string path = Write("a.txt", "one\n\ntwo\n---\nthree\nfour\n");
  options_.split = TextSplit::kFile;
  ASSERT_TRUE(Build({path}).ok());
  EXPECT_THAT(Texts(), ElementsAre("one\n\ntwo\n---\nthree\nfour\n"));
  options_.split = TextSplit::kSeparator;
  options_.separator = "---";
  ASSERT_TRUE(Build({path}).ok());
  EXPECT_THAT(Texts(), ElementsAre("one\n\ntwo\n", "three\nfour\n"));
  options_.split = TextSplit::kLines;
  options_.lines = 4;
  ASSERT_TRUE(Build({path}).ok());
  EXPECT_THAT(Texts(), ElementsAre("one\n\ntwo\n---\n", "three\nfour\n"));
}

TEST_F(DataBuild, AppendsTheEndOfSequenceAndKeepsSpecialTokensInTextAsText) {
  options_.append_eos = true;
  ASSERT_TRUE(Build({Write("a.txt", "a <|endoftext|>\n\nb\n")}).ok());
  EXPECT_THAT(Texts(), ElementsAre("a <|endoftext|>\n<|endoftext|>", "b\n<|endoftext|>"));
  auto documents = OpenIndexedDocuments(options_.output);
  std::vector<int32_t> ids((*documents)->Length(0));
  ASSERT_TRUE((*documents)->Read(0, 0, ids).ok());
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *tokenizer_->eos_id()), 1);
}

TEST_F(DataBuild, ReadsJsonl) {
  ASSERT_TRUE(
      Build({Write("a.jsonl", "{\"text\": \"the cat\\n\\nsat\"}\n\n{\"text\":\"dog\"}")}).ok());
  EXPECT_THAT(Texts(), ElementsAre("the cat\n\nsat", "dog"));
  options_.jsonl_field = "body";
  options_.jsonl = true;
  ASSERT_TRUE(Build({Write("b.txt", "{\"body\": \"x\", \"text\": 3}\n")}).ok());
  EXPECT_THAT(Texts(), ElementsAre("x"));
}

TEST_F(DataBuild, CompressedInputGivesTheSameFiles) {
  std::string text;
  for (int i = 0; i < 40000; ++i)
    text += fmt::format("the cat {} sat on\n{}", i * 7919, i % 5 ? "" : "\n");
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  size_t half = text.size() / 2;
  size_t first = ZSTD_compress(packed.data(), packed.size(), text.data(), half, 3);
  size_t second = ZSTD_compress(packed.data() + first, packed.size() - first, text.data() + half,
                                text.size() - half, 3);
  packed.resize(first + second);  // two frames, as `cat a.zst b.zst` makes
  ASSERT_TRUE(Build({Write("a.txt", text)}).ok());
  std::string bin = *ReadFile(options_.output + ".bin"), idx = *ReadFile(options_.output + ".idx");
  ASSERT_TRUE(Build({Write("a.txt.zst", packed)}).ok());
  EXPECT_EQ(*ReadFile(options_.output + ".bin"), bin);
  EXPECT_EQ(*ReadFile(options_.output + ".idx"), idx);

  auto torn = Build({Write("torn.zst", packed.substr(0, packed.size() - 5))});
  EXPECT_EQ(torn.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(torn.status()), HasSubstr("torn.zst"));
  packed[first] ^= 0x55;  // the second frame begins with another magic
  EXPECT_FALSE(Build({Write("bad.zst", packed)}).ok());
}

// 9 MB in one line and one document: parts are cut between characters, nothing is lost.
TEST_F(DataBuild, ALongLineIsEncodedInParts) {
  std::string text;
  while (text.size() < (size_t{9} << 20)) text += "the dog sät on the € mat, ";
  options_.split = TextSplit::kFile;
  auto built = Build({Write("long.txt", text)});
  ASSERT_TRUE(built.ok()) << Message(built.status());
  EXPECT_EQ(built->documents, 1);
  std::vector<std::string> texts = Texts();
  ASSERT_EQ(texts.size(), 1u);
  EXPECT_TRUE(texts[0] == text);
}

TEST_F(DataBuild, BadInputIsOneLineWithFileAndLine) {
  auto message = [&](const std::string& name, const std::string& bytes) {
    auto built = Build({Write(name, bytes)});
    EXPECT_EQ(built.status().code(), absl::StatusCode::kDataLoss) << name;
    return Message(built.status());
  };
  EXPECT_THAT(message("a.txt", "fine\nfine\nbr\xFFken\n"),
              HasSubstr("a.txt:3: not valid UTF-8 at byte 2 of the line"));
  EXPECT_THAT(message("empty.txt", ""), HasSubstr("empty.txt: no text in it"));
  EXPECT_THAT(message("blank.txt", "\n \n"), HasSubstr("blank.txt: no text in it"));
  EXPECT_THAT(message("a.jsonl", "{\"text\": \"x\"}\n{\"txt\": 1}\n"),
              HasSubstr("a.jsonl:2: a JSON object with a string \"text\" is needed"));
  EXPECT_THAT(message("b.jsonl", "{\"text\": \"x\"\n"), HasSubstr("b.jsonl:1"));
  EXPECT_EQ(Build({folder_ + "/none"}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Build({folder_}).status().code(), absl::StatusCode::kInvalidArgument);
  // The output of an earlier build is as it was.
  ASSERT_TRUE(Build({Write("good.txt", "good")}).ok());
  EXPECT_FALSE(Build({Write("bad.txt", "x\n\xC0\n")}).ok());
  EXPECT_THAT(Texts(), ElementsAre("good"));
}

TEST_F(DataBuild, ChatsCarryAMaskOfTheAssistantsTurns) {
  auto chat = ChatTemplate::Load(folder_ + "/tokenizer");
  ASSERT_TRUE(chat.ok()) << Message(chat.status());
  options_.chat = chat->get();
  auto built = Build({Write(
      "c.jsonl",
      R"({"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on"}, {"role": "user", "content": "dog <|im_end|>"}, {"role": "assistant", "content": "ran"}]})"
      "\n")});
  ASSERT_TRUE(built.ok()) << Message(built.status());
  auto documents = OpenIndexedDocuments(options_.output);
  ASSERT_TRUE(documents.ok()) << Message(documents.status());
  ASSERT_TRUE((*documents)->masked());
  ASSERT_EQ((*documents)->size(), 1);
  std::vector<int32_t> ids((*documents)->Length(0)), learned;
  std::vector<uint8_t> mask(ids.size());
  ASSERT_TRUE((*documents)->Read(0, 0, ids).ok());
  ASSERT_TRUE((*documents)->ReadMask(0, 0, mask).ok());
  std::string text;
  for (size_t t = 0; t < ids.size(); ++t) {
    bool starts = mask[t] != 0 && (t == 0 || mask[t - 1] == 0);
    if (starts) text += "[";
    text += tokenizer_->Decode(std::vector<int32_t>{ids[t]}, false);
    bool ends = mask[t] != 0 && (t + 1 == ids.size() || mask[t + 1] == 0);
    if (ends) text += "]";
  }
  EXPECT_THAT(text, HasSubstr("<|im_start|>assistant\n[sat on<|im_end|>"));
  EXPECT_THAT(text, HasSubstr("<|im_start|>assistant\n[ran<|im_end|>"));
  EXPECT_THAT(text, HasSubstr("<|im_start|>user\nthe cat<|im_end|>"));
  // Spelled by the user, it stays text: four of them close turns, none of them his.
  int32_t end = *tokenizer_->TokenToId("<|im_end|>");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), end), 4);
  EXPECT_EQ(built->loss_tokens, std::count(mask.begin(), mask.end(), 1));

  // A plain build with the same prefix leaves no mask behind.
  options_.chat = nullptr;
  ASSERT_TRUE(Build({Write("plain.txt", "plain")}).ok());
  EXPECT_FALSE((*OpenIndexedDocuments(options_.output))->masked());
}

TEST_F(DataBuild, BadChatsAreRefused) {
  auto chat = ChatTemplate::Load(folder_ + "/tokenizer");
  ASSERT_TRUE(chat.ok());
  options_.chat = chat->get();
  for (const char* line : {"{}", "[]", R"({"messages": 3})", R"({"messages": [1]})",
                           R"({"messages": [{"role": "user", "content": "no answer"}]})"}) {
    auto built = Build({Write("c.jsonl", line)});
    EXPECT_EQ(built.status().code(), absl::StatusCode::kDataLoss) << line;
    EXPECT_THAT(Message(built.status()), HasSubstr("c.jsonl")) << line;
  }
}

TEST(LineReader, CutsLongLinesBetweenCharacters) {
  std::string path = testing::TempDir() + fmt::format("/cadre_lines_{}", getpid());
  std::ofstream(path, std::ios::binary) << "\xEF\xBB\xBF"
                                        << "ab\nc\xE2\x82\xAC\xE2\x82\xAC"
                                           "d\n\nlast";
  for (size_t bytes : {5u, 1000u}) {
    auto reader = LineReader::Open(path);
    ASSERT_TRUE(reader.ok());
    std::vector<std::pair<int64_t, std::string>> lines;
    std::string line;
    while (*(*reader)->Next(bytes, &line)) lines.emplace_back((*reader)->line(), line);
    using L = std::pair<int64_t, std::string>;
    if (bytes == 5) {
      EXPECT_THAT(lines, ElementsAre(L{1, "ab\n"}, L{2, "c\xE2\x82\xAC"},
                                     L{2,
                                       "\xE2\x82\xAC"
                                       "d\n"},
                                     L{3, "\n"}, L{4, "last"}));
    } else {
      EXPECT_EQ(lines.size(), 4u);
    }
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace cadre
