#include "core/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "core/safetensors_folder.h"

namespace cadre {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::span<const std::byte> AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
std::string AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string FileOf(const std::string& json, size_t data) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(json.size() >> (8 * i));
  return bytes + json + std::string(data, 'd');
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensorsHeader(AsBytes(file), "f.safetensors");
}

std::string ErrorOf(const std::string& file) {
  const auto header = Parse(file);
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument) << file.substr(0, 300);
  EXPECT_THAT(Message(header.status()), HasSubstr("f.safetensors: "));
  return Message(header.status());
}

constexpr char kGood[] = R"({"__metadata__":{"format":"pt","k":"\u00e9\ud83d\ude00\n"},)"
                         R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
                         R"( "a" : { "shape":[], "data_offsets" : [0 , 4], "dtype":"F32" },)"
                         R"("none":{"dtype":"I64","shape":[0,5],"data_offsets":[16,16]}}   )";

TEST(Safetensors, ReadsWhatTheFormatAllows) {
  const auto header = Parse(FileOf(kGood, 16));
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 3);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[1].name, "b");
  EXPECT_EQ(header->tensors[1].type, StoredType::kBF16);
  EXPECT_THAT(header->tensors[1].shape, ElementsAre(2, 3));
  EXPECT_EQ(header->tensors[2].begin, 16);
  EXPECT_EQ(header->metadata.at("format"), "pt");
  EXPECT_EQ(header->metadata.at("k"), "\xc3\xa9\xf0\x9f\x98\x80\n");
  EXPECT_TRUE(Parse(FileOf("{}", 0)).ok());
}

TEST(Safetensors, RefusesBadFrames) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("0 bytes"));
  EXPECT_THAT(ErrorOf("1234567"), HasSubstr("at least 8"));
  EXPECT_THAT(ErrorOf("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
              HasSubstr("git lfs pull"));
  EXPECT_THAT(ErrorOf(std::string(8, '\xff')), HasSubstr("a header of 18446744073709551615 bytes"));
  EXPECT_THAT(ErrorOf(FileOf("{}", 0).substr(0, 9)), HasSubstr("a header of 2 bytes"));
  EXPECT_THAT(ErrorOf(FileOf("", 0)), HasSubstr("does not start with '{'"));
  EXPECT_THAT(ErrorOf(FileOf(" {}", 0)), HasSubstr("does not start with '{'"));
  EXPECT_THAT(ErrorOf(FileOf("{}", 3)), HasSubstr("the tensors end at byte 0 of 3"));
}

// A file that is all header, sparse on disk: nothing of it may be read or allocated.
TEST(Safetensors, RefusesAHugeHeaderWithoutReadingIt) {
  const std::string path = testing::TempDir() + fmt::format("/huge.{}", getpid());
  const uint64_t length = 200'000'000;
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(&length), 8);
  fs::resize_file(path, 8 + length);
  const auto file = SafetensorsFile::Open(path);
  fs::remove(path);
  EXPECT_THAT(Message(file.status()), HasSubstr("at most 100000000 are allowed"));
}

TEST(Safetensors, RefusesTooManyTensorsBeforeItReadsThem) {
  std::string json = "{";
  for (size_t i = 0; i <= kMaxSafetensorsEntries; ++i) json += "\"\\\"\":{},";
  json.back() = '}';
  EXPECT_THAT(ErrorOf(FileOf(json, 0)), HasSubstr("262145 entries in the header; at most 262144"));
  const std::string braces(kMaxSafetensorsEntries + 1, '{');
  EXPECT_TRUE(Parse(FileOf("{\"__metadata__\":{\"k\":\"\\\"" + braces + "\"}}", 0)).ok());
}

struct BadTensor {
  std::string tensor;
  std::string message;
};

TEST(Safetensors, RefusesBadTensorsByName) {
  const BadTensor kCases[] = {
      {R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})", "unknown dtype \"F31\""},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})",
       "4 bytes in the file, its shape needs 8"},
      {R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})",
       "its shape overflows"},
      {R"({"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,4]})",
       "its shape overflows"},
      {R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]})", "2^63"},
      {R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", "whole number without sign"},
      {R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", "',' is missing"},
      {R"({"dtype":"F32","shape":[01],"data_offsets":[0,4]})", "whole number"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", "bytes 4 to 0 of 4"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[1,5]})", "bytes 1 to 5 of 4"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,4]})", "']' is missing"},
      {R"({"dtype":"F32","shape":[1]})", "data_offsets is missing"},
      {R"({"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})", "dtype is given twice"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1})", "unknown key \"x\""},
      {R"({"dtype":"F32","shape":[[1]],"data_offsets":[0,4]})", "whole number"},
      {R"([])", "'{' is missing"},
  };
  for (const BadTensor& c : kCases) {
    EXPECT_THAT(ErrorOf(FileOf("{\"weird.name\":" + c.tensor + "}", 4)), HasSubstr(c.message));
  }
  EXPECT_THAT(ErrorOf(FileOf("{\"weird.name\":" + kCases[1].tensor + "}", 4)),
              HasSubstr("tensor \"weird.name\""));
}

TEST(Safetensors, RefusesRangesThatDoNotCoverTheDataOnce) {
  const auto two = [](const std::string& a, const std::string& b) {
    return FileOf(fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                              R"("b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                              a, b),
                  8);
  };
  EXPECT_TRUE(Parse(two("[4,8]", "[0,4]")).ok());
  EXPECT_THAT(ErrorOf(two("[0,4]", "[2,6]")),
              HasSubstr("tensor \"b\": begins at byte 2, overlaps"));
  EXPECT_THAT(ErrorOf(two("[0,4]", "[0,4]")), HasSubstr("overlaps"));
  EXPECT_THAT(ErrorOf(two("[1,5]", "[4,8]")),
              HasSubstr("tensor \"a\": begins at byte 1, leaves a hole"));
}

TEST(Safetensors, RefusesBadJson) {
  EXPECT_THAT(ErrorOf(FileOf("{\"a\":1,\"a\":2}", 0)), HasSubstr("'{' is missing"));
  const std::string a = R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_THAT(ErrorOf(FileOf("{" + a + "," + a + "}", 0)), HasSubstr("key \"a\" is given twice"));
  EXPECT_THAT(ErrorOf(FileOf("{" + a + ",}", 0)), HasSubstr("'\"' is missing"));
  EXPECT_THAT(ErrorOf(FileOf("{" + a + "}{", 0)), HasSubstr("after the closing brace"));
  EXPECT_THAT(ErrorOf(FileOf("{" + a, 0)), HasSubstr("',' is missing"));
  EXPECT_THAT(ErrorOf(FileOf("{\"__metadata__\":{\"k\":1}}", 0)), HasSubstr("\"k\": only strings"));
  EXPECT_THAT(ErrorOf(FileOf("{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", 0)), HasSubstr("twice"));
  EXPECT_THAT(ErrorOf(FileOf("{\"\xff\":{}}", 0)), HasSubstr("invalid UTF-8"));
  EXPECT_THAT(ErrorOf(FileOf("{\"\\ud800\":{}}", 0)), HasSubstr("surrogate"));
  EXPECT_THAT(ErrorOf(FileOf("{\"\\ud800\\u0020\":{}}", 0)), HasSubstr("surrogate"));
  EXPECT_THAT(ErrorOf(FileOf("{\"\\x\":{}}", 0)), HasSubstr("escape"));
  EXPECT_THAT(ErrorOf(FileOf("{\"a\nb\":{}}", 0)), HasSubstr("control character"));
  EXPECT_THAT(ErrorOf(FileOf("{\"a", 0)), HasSubstr("without an end"));
  EXPECT_THAT(ErrorOf(FileOf("{\"" + std::string(5000, 'n') + "\":{}}", 0)),
              HasSubstr("over 4096"));
  EXPECT_THAT(ErrorOf(FileOf("{\"a\":" + std::string(100000, '{'), 0)), HasSubstr("missing"));
  std::string ranks = "1";
  for (int i = 0; i < 64; ++i) ranks += ",1";
  EXPECT_THAT(ErrorOf(FileOf("{\"a\":{\"shape\":[" + ranks + "]}}", 0)), HasSubstr("dimensions"));
}

// Mutations of a good file are either refused or satisfy what an accepted header promises.
TEST(Safetensors, MutatedFilesAreRefusedOrSound) {
  std::mt19937 random(7);
  const std::string good = FileOf(kGood, 16);
  constexpr std::string_view kBytes = "\x7f\"{}[],:0149\\u\xff aF";
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string file = good;
    for (uint32_t edits = 1 + random() % 4; edits > 0 && !file.empty(); --edits) {
      const size_t at = random() % file.size();
      const char byte =
          random() % 2 ? kBytes[random() % kBytes.size()] : static_cast<char>(random());
      switch (random() % 5) {
        case 0:
          file.erase(at, 1 + random() % 8);
          break;
        case 1:
          file.insert(at, 1, byte);
          break;
        case 2:
          file.insert(at, file.substr(random() % file.size(), random() % 60));
          break;
        default:
          file[at] = byte;
      }
    }
    // Half of them keep a header length that fits, so that the JSON is reached.
    if (random() % 2 && file.size() > 24) {
      file = FileOf(file.substr(8, file.size() - 24), 16);
    }
    const auto header = Parse(file);
    if (!header.ok()) {
      ASSERT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ++accepted;
    uint64_t at = 0;
    for (const SafetensorsEntry& entry : header->tensors) {
      ASSERT_EQ(entry.begin, at);
      ASSERT_EQ(ByteSize(entry), entry.end - entry.begin);
      at = entry.end;
    }
    ASSERT_EQ(header->data_offset + at, file.size());
  }
  EXPECT_GT(accepted, 100);
}

class SafetensorsFiles : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + fmt::format("/safetensors_test.{}", getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  void Put(const std::string& name, const std::string& bytes) {
    ASSERT_TRUE(WriteFileAtomic(folder_ + "/" + name, bytes).ok());
  }
  std::string FolderError() { return Message(SafetensorsFolder::Open(folder_).status()); }
  std::string folder_;
};

std::vector<SafetensorsEntry> Entries() {
  return {{"z.\"quoted\"\n\xc3\xa9", StoredType::kBF16, {3}},
          {"empty", StoredType::kF32, {2, 0}},
          {"a", StoredType::kU8, {2, 2}},
          {"scalar", StoredType::kF64, {}}};
}

TEST_F(SafetensorsFiles, WritesWhatItReadsInTheOrderGiven) {
  const std::string path = folder_ + "/x.safetensors";
  auto writer = SafetensorsWriter::Create(path, Entries(), {{"format", "pt"}, {"q", "\"\\\x01"}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Append(AsBytes("ab")).ok());
  ASSERT_TRUE(writer->Append(AsBytes("cdef")).ok());
  EXPECT_FALSE(fs::exists(path));
  ASSERT_TRUE(writer->Write("a", AsBytes("1234")).ok());
  ASSERT_TRUE(writer->Write("scalar", AsBytes("01234567")).ok());
  ASSERT_TRUE(writer->Finish().ok());
  auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const SafetensorsFile moved = *std::move(file);
  ASSERT_EQ(moved.tensors().size(), 4);
  EXPECT_EQ(moved.tensors()[0].name, Entries()[0].name);
  EXPECT_EQ(AsText(moved.Bytes(moved.tensors()[0])), "abcdef");
  EXPECT_EQ(AsText(moved.Bytes(*moved.Find("a"))), "1234");
  EXPECT_TRUE(moved.Bytes(*moved.Find("empty")).empty());
  EXPECT_EQ(moved.Find("b"), nullptr);
  EXPECT_EQ(moved.metadata().at("q"), "\"\\\x01");
  EXPECT_EQ((fs::file_size(path) - 18) % 8, 0);
}

TEST_F(SafetensorsFiles, TheWriterRefusesNamesThatNoReaderWouldTake) {
  const std::string path = folder_ + "/x.safetensors";
  EXPECT_FALSE(SafetensorsWriter::Create(path, {{"a"}, {"a"}}, {}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(path, {{"__metadata__"}}, {}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(path, {{"\xff"}}, {}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(path, {{"a", StoredType::kF32, {-1}}}, {}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(path, {}, {{"k", "\xff"}}).ok());
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(SafetensorsFiles, TheWriterSplitsWhatNoReaderWouldTake) {
  std::vector<SafetensorsEntry> entries(kMaxSafetensorsEntries + 1);
  for (size_t i = 0; i < entries.size(); ++i) {
    entries[i] = {.name = fmt::format("t{}", i), .type = StoredType::kU8, .shape = {0}};
  }
  EXPECT_THAT(Message(SafetensorsWriter::Create(folder_ + "/many", entries, {}).status()),
              HasSubstr("262145 tensors in one file; at most 262143"));
  auto shards = PlanSafetensorsShards("model", entries, {}, 1 << 20);
  ASSERT_TRUE(shards.ok()) << Message(shards.status());
  EXPECT_EQ(shards->size(), 2u);
}

TEST_F(SafetensorsFiles, FoldersRoundTripWholeAndInShards) {
  for (const int64_t max_shard : {1000, 10, 1}) {
    const std::string folder = fmt::format("{}/{}", folder_, max_shard);
    fs::create_directories(folder);
    auto shards = PlanSafetensorsShards("state", Entries(), {{"format", "pt"}}, max_shard);
    ASSERT_TRUE(shards.ok()) << shards.status();
    EXPECT_EQ(shards->size(), max_shard == 1000 ? 1 : max_shard == 10 ? 2 : 4);
    for (const SafetensorsShard& shard : *shards) {
      std::string bytes = shard.header;
      for (const SafetensorsEntry& entry : shard.entries) {
        EXPECT_EQ(bytes.size(), shard.header.size() + entry.begin);
        bytes += std::string(*ByteSize(entry), entry.name[0]);
      }
      EXPECT_EQ(static_cast<int64_t>(bytes.size()), shard.bytes());
      ASSERT_TRUE(WriteFileAtomic(folder + "/" + shard.name, bytes).ok());
    }
    if (shards->size() > 1) {
      std::string index = SafetensorsIndex(*shards);
      ASSERT_TRUE(WriteFileAtomic(folder + "/" + SafetensorsIndexName("state"), index).ok());
    }
    auto read = SafetensorsFolder::Open(folder, "state");
    ASSERT_TRUE(read.ok()) << read.status();
    const SafetensorsFolder moved = *std::move(read);
    EXPECT_EQ(moved.tensors().size(), 4);
    EXPECT_EQ(AsText(moved.Find("a").Bytes()), "aaaa");
    EXPECT_EQ(AsText(moved.Find("scalar").Bytes()), "ssssssss");
    EXPECT_EQ(moved.Find("b").entry, nullptr);
  }
}

TEST_F(SafetensorsFiles, AnIndexMustAgreeWithItsShards) {
  const std::string a = FileOf(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  const std::string b = FileOf(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  const std::string index = "model.safetensors.index.json";
  EXPECT_EQ(SafetensorsFolder::Open(folder_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(FolderError(), HasSubstr("neither model.safetensors nor"));
  Put("1.safetensors", a);
  Put("2.safetensors", b);
  Put(index, R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  EXPECT_TRUE(SafetensorsFolder::Open(folder_).ok()) << FolderError();
  Put(index, R"({"weight_map":{"a":"1.safetensors","b":"3.safetensors"}})");
  EXPECT_THAT(FolderError(), HasSubstr("3.safetensors: cannot open"));
  Put(index, R"({"weight_map":{"a":"2.safetensors","b":"1.safetensors"}})");
  EXPECT_THAT(FolderError(), HasSubstr("tensor \"a\" is not in 2.safetensors"));
  Put(index, R"({"weight_map":{"a":"1.safetensors","c":"1.safetensors"}})");
  EXPECT_THAT(FolderError(), HasSubstr("tensor \"c\" is not in 1.safetensors"));
  Put(index, R"({"weight_map":{"a":"1.safetensors","a":"1.safetensors"}})");
  EXPECT_THAT(FolderError(), HasSubstr("\"a\": given twice"));
  for (const char* path :
       {"../1.safetensors", "/etc/passwd", "x/1.safetensors", "..", "a\\\\b", ""}) {
    Put(index, fmt::format(R"({{"weight_map":{{"a":"{}"}}}})", path));
    EXPECT_THAT(FolderError(), HasSubstr("a file name without folders"));
  }
  for (const char* text :
       {"", "{", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})"}) {
    Put(index, text);
    EXPECT_THAT(FolderError(), HasSubstr("weight_map"));
  }
  Put("2.safetensors", a);
  Put(index, R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  EXPECT_THAT(FolderError(), HasSubstr("tensor \"a\" is in "));
  Put("2.safetensors", FileOf(R"({"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                              R"("c":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                              0));
  EXPECT_THAT(FolderError(), HasSubstr("tensor \"c\" is not in the index"));
}

}  // namespace
}  // namespace cadre
