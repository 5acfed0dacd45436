#include "model/gguf.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"

#include "core/ops/quantize.h"
#include "core/random.h"
#include "model/gguf_blocks.h"
#include "model/gguf_model.h"
#include "model/gguf_test_util.h"
#include "model/test_tensors.h"

namespace cadre {
namespace {

using testing_gguf::Encode;
using testing_gguf::Put;
using testing_gguf::PutString;
using testing_gguf::Writer;

absl::StatusOr<GgufFile> Parse(const std::string& bytes) {
  return GgufFile::Parse("test.gguf", std::as_bytes(std::span(bytes)));
}

void ExpectRefused(const std::string& bytes, std::string_view what) {
  const auto file = Parse(bytes);
  ASSERT_FALSE(file.ok()) << what;
  EXPECT_NE(Message(file.status()).find(what), std::string::npos) << Message(file.status());
}

Writer Small() {
  Writer writer;
  writer.String("general.architecture", "llama");
  writer.U32("llama.block_count", 2);
  writer.F32("llama.rope.freq_base", 500.5f);
  writer.Bool("tokenizer.ggml.add_bos_token", false);
  writer.Strings("tokenizer.ggml.tokens", {"a", "bc", ""});
  writer.Numbers<int32_t>("tokenizer.ggml.token_type", 5, {1, -3, 2});
  std::vector<float> values(96, 1.5f);
  writer.Tensor("f", 0, {96}, Encode(0, &values));
  writer.Tensor("q", 8, {3, 32}, Encode(8, &values));
  return writer;
}

TEST(Gguf, ReadsMetadataAndTensors) {
  const std::string bytes = Small().Bytes();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << Message(file.status());
  EXPECT_EQ(*file->GetString("general.architecture"), "llama");
  EXPECT_EQ(*file->GetInteger("llama.block_count", 1, 9), 2);
  EXPECT_EQ(file->GetInteger("llama.block_count", 3, 9).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->GetString("absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*file->GetNumber("llama.rope.freq_base"), 500.5);
  EXPECT_EQ(*file->GetBool("tokenizer.ggml.add_bos_token", true), false);
  EXPECT_EQ(file->GetStrings("tokenizer.ggml.tokens")->at(1), "bc");
  EXPECT_EQ(file->GetNumbers("tokenizer.ggml.token_type")->at(1), -3.0);
  const GgufTensor* tensor = file->Find("q");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->shape, (std::vector<int64_t>{3, 32}));
  EXPECT_EQ(tensor->bytes.size(), 3 * 34u);
  EXPECT_EQ(file->Find("absent"), nullptr);
}

TEST(Gguf, EveryTruncationIsRefused) {
  const std::string bytes = Small().Bytes();
  // The padding behind the last tensor may be missing.
  for (size_t size = 0; size < bytes.size() - 26; ++size) {
    EXPECT_FALSE(Parse(bytes.substr(0, size)).ok()) << size;
  }
}

TEST(Gguf, HugeCountsCostNothing) {
  for (uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 40, ~uint64_t{0}}) {
    std::string counts = "GGUF";
    Put(&counts, uint32_t{3});
    Put(&counts, count);
    Put(&counts, uint64_t{0});
    ExpectRefused(counts, "tensors");
    Writer strings;
    std::string key;
    PutString(&key, "k");
    Put(&key, uint32_t{9});
    Put(&key, uint32_t{8});
    Put(&key, count);
    strings.RawKey(key);
    ExpectRefused(strings.Bytes(), "past its end");
    Writer length;
    key.clear();
    Put(&key, count);
    length.RawKey(key);
    ExpectRefused(length.Bytes(), "past its end");
  }
}

std::string Description(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                        uint64_t offset) {
  std::string bytes;
  PutString(&bytes, name);
  Put(&bytes, static_cast<uint32_t>(dims.size()));
  for (uint64_t dim : dims) Put(&bytes, dim);
  Put(&bytes, type);
  Put(&bytes, offset);
  return bytes;
}

TEST(Gguf, BadTensorsAreRefusedByName) {
  struct Case {
    std::string description;
    std::string_view what;
  };
  const uint64_t huge = uint64_t{1} << 62;
  for (const Case& c : {Case{Description("t", {}, 0, 0), "t: 0 dimensions"},
                        Case{Description("t", {1, 1, 1, 1, 1}, 0, 0), "t: 5 dimensions"},
                        Case{Description("t", {huge, 4}, 0, 0), "past its end"},
                        Case{Description("t", {0}, 0, 0), "past its end"},
                        Case{Description("t", {4}, 0, huge), "16 bytes"},
                        Case{Description("t", {4}, 0, 16), "aligned"},
                        Case{Description("t", {24}, 8, 0), "no whole blocks of 32"},
                        Case{Description("t", {32}, 3, 0), "ggml type 3"},
                        Case{Description("f", {4}, 0, 0), "comes twice"},
                        Case{Description("t", {4}, 0, 0), "overlap"},
                        Case{Description("t", {32}, 0, 384 + 96), "128 bytes"},
                        Case{Description("", {4}, 0, 0), "a tensor's name of 0 bytes"}}) {
    Writer writer = Small();
    writer.RawTensor(c.description);
    ExpectRefused(writer.Bytes(), c.what);
  }
}

TEST(Gguf, BadMetadataIsRefused) {
  Writer twice = Small();
  twice.U32("llama.block_count", 3);
  ExpectRefused(twice.Bytes(), "comes twice");
  for (auto [type, what] :
       {std::pair<uint32_t, const char*>{13, "type 13"}, {9, "array of type"}}) {
    Writer writer;
    std::string key;
    PutString(&key, "k");
    Put(&key, type);
    for (int i = 0; i < 8; ++i) Put(&key, uint32_t{9});  // arrays of arrays
    writer.RawKey(key);
    ExpectRefused(writer.Bytes(), what);
  }
  Writer old = Small();
  old.version = 1;
  ExpectRefused(old.Bytes(), "GGUF version 1");
  Writer aligned = Small();
  aligned.U32("general.alignment", 24);
  ExpectRefused(aligned.Bytes(), "power of two");
  ExpectRefused("GGML" + Small().Bytes().substr(4), "not a GGUF file");
}

// Blocks of the K types as their definition packs them, from chosen scales and codes.
class Blocks : public testing::Test {
 protected:
  int Draw(uint64_t i, int below) {
    return static_cast<int>(key_.U64(i) % static_cast<uint64_t>(below));
  }

  void Check(GgufType type, const std::string& row, const std::vector<float>& want) {
    std::vector<float> floats(want.size());
    const auto* bytes = reinterpret_cast<const std::byte*>(row.data());
    GgufRowToFloats(type, bytes, static_cast<int64_t>(want.size()), floats.data());
    for (size_t i = 0; i < want.size(); ++i) ASSERT_FLOAT_EQ(floats[i], want[i]) << i;
    QuantizedRows rows = EmptyGgufRows(ctx_, type, 1, static_cast<int64_t>(want.size()));
    UnpackGgufRow(type, bytes, 0, &rows);
    const Tensor back = ops::Dequantize(ctx_, {ops::PackQuantized(ctx_, {rows})}, DType::kF32);
    const Tensor wanted =
        Tensor::Of<float>(allocator_, {1, static_cast<int64_t>(want.size())}, want);
    // Scales that are products of two are rounded to f16.
    EXPECT_LT(testing_tensors::RelativeError(back, wanted), 1e-3) << Name(type);
  }

  HostAllocator allocator_;
  Context ctx_{.allocator = &allocator_};
  RandomKey key_{1, "gguf"};
};

TEST_F(Blocks, Q4_K) {
  std::string row;
  std::vector<float> want;
  for (int block = 0; block < 2; ++block) {
    const F16 d(0.01f * static_cast<float>(block + 1)), dmin(0.02f);
    int scale[8], min[8], code[256];
    for (int g = 0; g < 8; ++g) {
      scale[g] = 1 + Draw(static_cast<uint64_t>(block * 100 + g), 63);
      min[g] = Draw(static_cast<uint64_t>(block * 100 + 50 + g), 64);
    }
    uint8_t packed[12] = {};
    for (int g = 0; g < 4; ++g) {
      packed[g] = static_cast<uint8_t>(scale[g] | scale[g + 4] >> 4 << 6);
      packed[g + 4] = static_cast<uint8_t>(min[g] | min[g + 4] >> 4 << 6);
      packed[g + 8] = static_cast<uint8_t>((scale[g + 4] & 15) | (min[g + 4] & 15) << 4);
    }
    for (int i = 0; i < 256; ++i) {
      code[i] = Draw(static_cast<uint64_t>(1000 + block * 256 + i), 16);
      want.push_back(static_cast<float>(d) * static_cast<float>(scale[i / 32]) *
                         static_cast<float>(code[i]) -
                     static_cast<float>(dmin) * static_cast<float>(min[i / 32]));
    }
    Put(&row, d.bits);
    Put(&row, dmin.bits);
    row.append(reinterpret_cast<char*>(packed), 12);
    for (int pair = 0; pair < 4; ++pair) {
      for (int i = 0; i < 32; ++i) {
        row.push_back(static_cast<char>(code[pair * 64 + i] | code[pair * 64 + 32 + i] << 4));
      }
    }
  }
  Check(GgufType::kQ4_K, row, want);
}

TEST_F(Blocks, Q6_K) {
  const F16 d(0.003f);
  int8_t scale[16];
  int code[256];
  std::vector<float> want;
  for (int g = 0; g < 16; ++g) {
    scale[g] = static_cast<int8_t>(Draw(static_cast<uint64_t>(g), 255) - 127);
  }
  for (int i = 0; i < 256; ++i) {
    code[i] = Draw(static_cast<uint64_t>(100 + i), 64);
    want.push_back(static_cast<float>(d) * static_cast<float>(scale[i / 16]) *
                   static_cast<float>(code[i] - 32));
  }
  std::string low(128, '\0'), high(64, '\0');
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 128; ++i) {
      const int c = code[half * 128 + i];
      low[static_cast<size_t>(half * 64 + i % 64)] |= static_cast<char>((c & 15) << (i / 64 * 4));
      high[static_cast<size_t>(half * 32 + i % 32)] |= static_cast<char>(c >> 4 << (i / 32 * 2));
    }
  }
  std::string row = low + high;
  row.append(reinterpret_cast<char*>(scale), 16);
  Put(&row, d.bits);
  Check(GgufType::kQ6_K, row, want);
}

TEST_F(Blocks, Q8_0AndQ4_0) {
  for (GgufType type : {GgufType::kQ8_0, GgufType::kQ4_0}) {
    std::vector<float> values;
    for (uint64_t i = 0; i < 96; ++i) values.push_back(static_cast<float>(key_.Normal(i)));
    const std::string row = Encode(static_cast<uint32_t>(type), &values);
    Check(type, row, values);
  }
}

std::string Ids(const Tokenizer& tokenizer, std::string_view text) {
  std::string ids;
  for (int32_t id : tokenizer.Encode(text, {.add_special_tokens = true})) {
    ids += fmt::format("{} ", id);
  }
  return ids;
}

TEST(GgufTokenizer, SentencePieceMergesByScore) {
  Writer writer;
  writer.String("tokenizer.ggml.model", "llama");
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>", "\u2581",  "a",  "b",
                                     "c",     "ab",  "bc",   "\u2581a", "abc"};
  std::vector<float> scores = {0, 0, 0, -1, -1, -1, -1, -3, -2, -5, -4};
  std::vector<int32_t> types = {2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1};
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(fmt::format("<0x{:02X}>", byte));
    scores.push_back(0);
    types.push_back(6);
  }
  writer.Strings("tokenizer.ggml.tokens", tokens);
  writer.Numbers("tokenizer.ggml.scores", 6, scores);
  writer.Numbers("tokenizer.ggml.token_type", 5, types);
  writer.U32("tokenizer.ggml.bos_token_id", 1);
  writer.U32("tokenizer.ggml.eos_token_id", 2);
  writer.String("tokenizer.chat_template", "{{ messages[0].content }}");
  const std::string bytes = writer.Bytes();
  const GgufFile file = *Parse(bytes);
  const auto files = GgufTokenizer(file);
  ASSERT_TRUE(files.ok()) << Message(files.status());
  const auto tokenizer = Tokenizer::Parse("test", files->tokenizer, files->config);
  ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  // bc (-2) goes before ab (-3), and abc (-4) before the mark and its a (-5).
  EXPECT_EQ(Ids(**tokenizer, "abc"), "1 3 10 ");
  EXPECT_EQ(Ids(**tokenizer, "a d"), fmt::format("1 9 3 {} ", 11 + 'd'));
  EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode("a d", {}), false), "a d");
  EXPECT_EQ((*tokenizer)->eos_id(), 2);
  EXPECT_EQ(GgufChatOf(file)->source, "{{ messages[0].content }}");
}

TEST(GgufTokenizer, UnknownKindsAreNamed) {
  Writer writer;
  writer.String("tokenizer.ggml.model", "gpt2");
  writer.Strings("tokenizer.ggml.tokens", {"a"});
  writer.String("tokenizer.ggml.pre", "tekken");
  const std::string bytes = writer.Bytes();
  const auto files = GgufTokenizer(*Parse(bytes));
  EXPECT_EQ(files.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(Message(files.status()).find("tekken"), std::string::npos);
}

}  // namespace
}  // namespace cadre
