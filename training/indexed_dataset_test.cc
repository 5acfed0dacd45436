#include "training/indexed_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>

namespace cadre {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::string Hex(const std::string& bytes) {
  std::string text;
  for (const unsigned char c : bytes) text += fmt::format("{:02x}", c);
  return text;
}

class Indexed : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + fmt::format("/indexed_test.{}", getpid());
    fs::create_directories(folder_);
    prefix_ = folder_ + "/data";
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Documents [5, 6, 7], [] (no sequence), [8] + [9, 10].
  void WriteSample(TokenType type) {
    auto writer = IndexedDatasetWriter::Create(prefix_, type);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{5, 6, 7}).ok());
    writer->EndDocument();
    ASSERT_TRUE(writer->AddSequence(std::vector<int32_t>{8}).ok());
    ASSERT_TRUE(writer->AddSequence(std::vector<int32_t>{9, 10}).ok());
    writer->EndDocument();
    EXPECT_EQ(writer->documents(), 3);
    ASSERT_TRUE(writer->Finish().ok());
  }

  // A sample whose index has one value replaced.
  template <typename T>
  std::string ErrorWith(size_t offset, T value) {
    WriteSample(TokenType::kU16);
    std::string idx = *ReadFile(prefix_ + ".idx");
    std::memcpy(idx.data() + offset, &value, sizeof(value));
    EXPECT_TRUE(WriteFileAtomic(prefix_ + ".idx", idx).ok());
    const absl::Status status = IndexedDataset::Open(prefix_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), HasSubstr("/data.idx: "));
    return Message(status);
  }

  std::string folder_;
  std::string prefix_;
};

TEST_F(Indexed, EveryTypeReadsBackAcrossSequences) {
  for (const TokenType type : {TokenType::kU8, TokenType::kI8, TokenType::kI16, TokenType::kI32,
                               TokenType::kI64, TokenType::kU16}) {
    WriteSample(type);
    const auto opened = IndexedDataset::Open(prefix_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->documents(), 3);
    EXPECT_EQ(opened->tokens(), 6);
    EXPECT_EQ(opened->DocumentLength(0), 3);
    EXPECT_EQ(opened->DocumentLength(1), 0);
    EXPECT_EQ(opened->DocumentLength(2), 3);
    std::vector<int32_t> ids(3);
    ASSERT_TRUE(opened->ReadDocument(2, 0, ids).ok());
    EXPECT_THAT(ids, ElementsAre(8, 9, 10));
    ASSERT_TRUE(opened->ReadDocument(2, 1, std::span(ids).first(2)).ok());
    EXPECT_THAT(ids, ElementsAre(9, 10, 10));
    ASSERT_TRUE(opened->ReadDocument(0, 1, std::span(ids).first(1)).ok());
    EXPECT_EQ(ids[0], 6);
    EXPECT_EQ(fs::file_size(prefix_ + ".bin"), 6 * SizeOf(type));
  }
}

// Spelled out from the format's definition, field by field.
TEST_F(Indexed, BytesAreMegatrons) {
  WriteSample(TokenType::kU16);
  EXPECT_EQ(Hex(*ReadFile(prefix_ + ".bin")),
            "05000600070008000900"
            "0a00");
  EXPECT_EQ(Hex(*ReadFile(prefix_ + ".idx")),
            "4d4d4944494458"
            "0000"
            "0100000000000000"
            "08"
            "0300000000000000"
            "0400000000000000"
            "03000000"
            "01000000"
            "02000000"
            "0000000000000000"
            "0600000000000000"
            "0800000000000000"
            "0000000000000000"
            "0100000000000000"
            "0100000000000000"
            "0300000000000000");
}

TEST_F(Indexed, ModesAreSkipped) {
  WriteSample(TokenType::kI32);
  ASSERT_TRUE(
      WriteFileAtomic(prefix_ + ".idx", *ReadFile(prefix_ + ".idx") + std::string(3, '\1')).ok());
  EXPECT_TRUE(IndexedDataset::Open(prefix_).ok());
}

TEST_F(Indexed, NoDocumentsAreADataset) {
  auto writer = IndexedDatasetWriter::Create(prefix_, TokenTypeFor(100));
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_EQ(IndexedDataset::Open(prefix_)->documents(), 0);
}

TEST_F(Indexed, TheTypeFollowsTheVocabulary) {
  EXPECT_EQ(TokenTypeFor(65499), TokenType::kU16);
  EXPECT_EQ(TokenTypeFor(65500), TokenType::kI32);
}

TEST_F(Indexed, HostileIndexesAreRefused) {
  EXPECT_THAT(ErrorWith<uint8_t>(0, 'X'), HasSubstr("MMIDIDX"));
  EXPECT_THAT(ErrorWith<uint64_t>(9, 2), HasSubstr("version 2"));
  EXPECT_THAT(ErrorWith<uint8_t>(17, 0), HasSubstr("element type 0 is unknown"));
  EXPECT_THAT(ErrorWith<uint8_t>(17, 9), HasSubstr("element type 9"));
  EXPECT_THAT(ErrorWith<uint8_t>(17, 7), HasSubstr("is a float"));
  EXPECT_THAT(ErrorWith<uint64_t>(18, ~uint64_t{0}), HasSubstr("18446744073709551615 sequences"));
  EXPECT_THAT(ErrorWith<uint64_t>(18, 2), HasSubstr("need 90"));
  EXPECT_THAT(ErrorWith<uint64_t>(26, 0), HasSubstr("0 document entries"));
  EXPECT_THAT(ErrorWith<uint64_t>(26, uint64_t{1} << 61), HasSubstr("document entries"));
  EXPECT_THAT(ErrorWith<int32_t>(34, -1), HasSubstr("sequence 0: length -1"));
  EXPECT_THAT(ErrorWith<int32_t>(34, 7), HasSubstr("14 bytes from 0 are past the .bin's 12"));
  EXPECT_THAT(ErrorWith<int64_t>(46, -2), HasSubstr("sequence 0: 6 bytes from -2"));
  EXPECT_THAT(ErrorWith<int64_t>(62, INT64_MAX), HasSubstr("sequence 2"));
  EXPECT_THAT(ErrorWith<int64_t>(70, 1), HasSubstr("document 0: begins at sequence 1"));
  EXPECT_THAT(ErrorWith<int64_t>(78, 2), HasSubstr("document 2: begins at sequence 1"));
  EXPECT_THAT(ErrorWith<int64_t>(94, 4), HasSubstr("document 3: begins at sequence 4"));
  EXPECT_THAT(ErrorWith<int64_t>(94, 2), HasSubstr("the documents end at sequence 2 of 3"));
}

TEST_F(Indexed, TornAndMissingFilesAreNamed) {
  EXPECT_THAT(Message(IndexedDataset::Open(prefix_).status()), HasSubstr("data.idx: cannot open"));
  WriteSample(TokenType::kU16);
  const std::string bin = *ReadFile(prefix_ + ".bin");
  ASSERT_TRUE(WriteFileAtomic(prefix_ + ".bin", bin.substr(0, 11)).ok());
  EXPECT_THAT(Message(IndexedDataset::Open(prefix_).status()), HasSubstr("sequence 2"));
  fs::remove(prefix_ + ".bin");
  EXPECT_THAT(Message(IndexedDataset::Open(prefix_).status()), HasSubstr("data.bin: cannot open"));
  ASSERT_TRUE(WriteFileAtomic(prefix_ + ".idx", "").ok());
  ASSERT_TRUE(WriteFileAtomic(prefix_ + ".bin", "").ok());
  EXPECT_THAT(Message(IndexedDataset::Open(prefix_).status()), HasSubstr("MMIDIDX"));
}

TEST_F(Indexed, IdsThatAreNoneAreRefusedBothWays) {
  auto writer = IndexedDatasetWriter::Create(prefix_, TokenType::kU16);
  ASSERT_TRUE(writer.ok());
  EXPECT_THAT(Message(writer->AddDocument(std::vector<int32_t>{1, 65536})),
              HasSubstr("token id 65536; allowed: 0 to 65535"));
  EXPECT_THAT(Message(writer->AddDocument(std::vector<int32_t>{-1})), HasSubstr("token id -1"));
  ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{65535}).ok());
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_EQ(IndexedDataset::Open(prefix_)->tokens(), 1);
  std::string idx = *ReadFile(prefix_ + ".idx");
  idx[17] = 3;  // the same bytes as int16
  ASSERT_TRUE(WriteFileAtomic(prefix_ + ".idx", idx).ok());
  int32_t id = 0;
  const absl::Status status = IndexedDataset::Open(prefix_)->ReadDocument(0, 0, {&id, 1});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("data.bin: sequence 0: token 0 is -1, no id"));
}

TEST_F(Indexed, AnAbandonedWriterLeavesTheOldPair) {
  WriteSample(TokenType::kU16);
  {
    auto writer = IndexedDatasetWriter::Create(prefix_, TokenType::kI32);
    ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>(300000, 1)).ok());
  }
  EXPECT_EQ(IndexedDataset::Open(prefix_)->tokens(), 6);
}

TEST_F(Indexed, MutatedIndexesAreRefusedOrSound) {
  WriteSample(TokenType::kU16);
  const std::string good = *ReadFile(prefix_ + ".idx");
  std::mt19937 random(11);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string file = good;
    for (uint32_t edits = 1 + random() % 3; edits > 0; --edits) {
      const size_t at = random() % file.size();
      if (random() % 8 == 0) file.resize(at + 1);
      file[std::min(at, file.size() - 1)] =
          static_cast<char>(random() % 4 ? random() % 4 : random());
    }
    const std::span bytes(reinterpret_cast<const std::byte*>(file.data()), file.size());
    const auto index = TokenIndex::Parse(bytes, 12, "x.idx");
    if (!index.ok()) continue;
    ++accepted;
    int64_t sequence = 0;
    for (int64_t d = 0; d < index->documents(); ++d) {
      ASSERT_EQ(index->FirstSequence(d), sequence);
      for (; sequence < index->FirstSequence(d + 1); ++sequence) {
        ASSERT_LE(index->Pointer(sequence) + index->Length(sequence) * SizeOf(index->type()), 12);
      }
    }
    ASSERT_EQ(sequence, index->sequences());
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace cadre
