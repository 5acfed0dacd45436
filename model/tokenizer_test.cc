#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "core/status.h"

namespace cadre {
namespace {

using testing::ElementsAre;

// 512 entries, made by `cadre tokenizer train` from the King James Bible.
constexpr const char* kFolder = "tests/data/tokenizer";
constexpr int32_t kEndOfText = 0, kStart = 1, kEnd = 2;

std::unique_ptr<Tokenizer> LoadSmall() {
  auto tokenizer = Tokenizer::Load(kFolder);
  EXPECT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  return *std::move(tokenizer);
}

// Text of every kind of character, special strings among it.
std::string RandomText(std::mt19937& random) {
  static const std::vector<std::string> kParts = {
      "the", " God", " ",          "   ",     "\n",     "\r\n", "\t",         "1",      "42",
      "'s",  "'LL",  "é",          "e\u0301", "漢字",   "ไทย",  "🦙",       "\u00a0", "!",
      "...", "\x7f", "<|im_end|>", "<|im_",   "\u180e", "ſ",    "\U00010400", "Hello"};
  std::string text;
  for (size_t count = random() % 30; count > 0; --count) text += kParts[random() % kParts.size()];
  return text;
}

TEST(Tokenizer, RoundTripsAnyText) {
  const auto tokenizer = LoadSmall();
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    const std::string text = RandomText(random);
    const std::vector<int32_t> ids = tokenizer->Encode(text);
    EXPECT_EQ(tokenizer->Decode(ids, false), text);
    EXPECT_EQ(tokenizer->TextBytes(ids), text.size());
    for (const int32_t id : ids) EXPECT_FALSE(tokenizer->IsSpecial(id)) << text;
  }
}

TEST(Tokenizer, KnowsItsEntries) {
  const auto tokenizer = LoadSmall();
  EXPECT_EQ(tokenizer->vocab_size(), 512);
  EXPECT_EQ(tokenizer->bos_id(), kEndOfText);
  EXPECT_EQ(tokenizer->eos_id(), kEndOfText);
  EXPECT_EQ(tokenizer->pad_id(), kEndOfText);
  EXPECT_EQ(tokenizer->unk_id(), std::nullopt);
  EXPECT_EQ(tokenizer->TokenToId("<|im_start|>"), kStart);
  EXPECT_EQ(tokenizer->TokenToId("no such entry"), std::nullopt);
  EXPECT_TRUE(tokenizer->IsSpecial(kEnd));
  EXPECT_FALSE(tokenizer->IsSpecial(512));
  const std::optional<int32_t> the = tokenizer->TokenToId("Ġthe");
  ASSERT_TRUE(the.has_value());
  EXPECT_EQ(tokenizer->TokenBytes(*the), " the");
  EXPECT_EQ(tokenizer->TokenString(*the), "Ġthe");
  EXPECT_EQ(tokenizer->TokenBytes(-1), "");
  EXPECT_NE(tokenizer->chat_template().find("<|im_start|>"), std::string::npos);
}

TEST(Tokenizer, SpecialStringsInTextStayText) {
  const auto tokenizer = LoadSmall();
  const std::string text = "a<|im_end|>b";
  const std::vector<int32_t> plain = tokenizer->Encode(text);
  EXPECT_THAT(plain, testing::Not(testing::Contains(kEnd)));
  EXPECT_EQ(tokenizer->Decode(plain, true), text);
  const std::vector<int32_t> parsed = tokenizer->Encode(text, {.parse_special = true});
  EXPECT_EQ(parsed.size(), 3u);
  EXPECT_EQ(parsed[1], kEnd);
  EXPECT_EQ(tokenizer->Decode(parsed, false), text);
  EXPECT_EQ(tokenizer->Decode(parsed, true), "ab");
}

TEST(Tokenizer, SpansKeepUsersFromWritingSpecialTokens) {
  const auto tokenizer = LoadSmall();
  const TextSpan spans[] = {
      {"<|im_start|>user\n", true}, {"hi<|im_end|><|im_", false}, {"end|>\n<|im_end|>", true}};
  const std::vector<int32_t> ids = tokenizer->EncodeSpans(spans);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), kStart), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), kEnd), 1);
  EXPECT_EQ(ids.back(), kEnd);
  EXPECT_EQ(tokenizer->Decode(ids, true), "user\nhi<|im_end|><|im_end|>\n");
}

TEST(Tokenizer, SpansWithoutSpecialStringsEncodeAsOneText) {
  const auto tokenizer = LoadSmall();
  const TextSpan spans[] = {
      {"In the begin", true}, {"", false}, {"ning God cre", false}, {"ated the heaven", true}};
  EXPECT_EQ(tokenizer->EncodeSpans(spans),
            tokenizer->Encode("In the beginning God created the heaven"));
}

TEST(Tokenizer, EncodingStopsWhereMoreIsNotWanted) {
  const auto tokenizer = LoadSmall();
  std::string text, marked;
  for (int i = 0; i < 1000; ++i) {
    text += "In the beginning ";
    marked += "a<|im_end|>";
  }
  for (const std::string& one : {text, marked}) {
    const std::vector<int32_t> whole = tokenizer->Encode(one, {.parse_special = true});
    const std::vector<int32_t> part =
        tokenizer->Encode(one, {.parse_special = true, .most_ids = 100});
    EXPECT_GT(part.size(), 100u);
    EXPECT_LT(part.size(), 120u);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin()));
    EXPECT_EQ(tokenizer->Encode(one, {.parse_special = true, .most_ids = whole.size()}), whole);
  }
}

TEST(Tokenizer, BrokenUtf8BecomesReplacementCharacters) {
  const auto tokenizer = LoadSmall();
  const auto round_trip = [&](std::string_view text) {
    return tokenizer->Decode(tokenizer->Encode(text), false);
  };
  EXPECT_EQ(round_trip("a\xFFz"), "a\uFFFDz");
  EXPECT_EQ(round_trip("a\xE6\xBCz"), "a\uFFFDz");
  EXPECT_EQ(round_trip("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_FALSE(IsValidUtf8("\xC0\x80"));
  EXPECT_FALSE(IsValidUtf8("0123456789\xF4\x90\x80\x80"));
  EXPECT_TRUE(IsValidUtf8("0123456789 \U0010FFFF"));
  EXPECT_EQ(ValidUtf8Prefix("0123456789\xE6"), 10u);
}

TEST(Tokenizer, DecodeDropsIdsThatDoNotExist) {
  const auto tokenizer = LoadSmall();
  std::vector<int32_t> ids = tokenizer->Encode("God");
  ids.push_back(-1);
  ids.push_back(512);
  ids.push_back(std::numeric_limits<int32_t>::max());
  EXPECT_EQ(tokenizer->Decode(ids, false), "God");
}

TEST(StreamDecoder, GivesDecodesTextInWholeCharacters) {
  const auto tokenizer = LoadSmall();
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) {
    std::vector<int32_t> ids;
    if (i % 2 == 0) {
      ids = tokenizer->Encode(RandomText(random));
    } else {
      for (int k = 0; k < 20; ++k) ids.push_back(static_cast<int32_t>(random() % 520));
    }
    StreamDecoder decoder(*tokenizer, true);
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = decoder.Push(id);
      EXPECT_TRUE(IsValidUtf8(piece));
      text += piece;
    }
    text += decoder.Finish();
    EXPECT_EQ(text, tokenizer->Decode(ids, true));
  }
}

TEST(StreamDecoder, HoldsACharacterUntilItIsWhole) {
  const auto tokenizer = LoadSmall();
  const std::vector<int32_t> ids = tokenizer->Encode("🦙");
  ASSERT_EQ(ids.size(), 4u);
  StreamDecoder decoder(*tokenizer, true);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(decoder.Push(ids[i]), "");
  EXPECT_EQ(decoder.Push(ids[3]), "🦙");
  EXPECT_EQ(decoder.Push(ids[0]), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(Tokenizer, ThreadsGetTheSameIds) {
  const auto tokenizer = LoadSmall();
  std::mt19937 random(3);
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < 100; ++i) {
    texts.push_back(RandomText(random));
    expected.push_back(LoadSmall()->Encode(texts.back()));
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < texts.size(); ++i) {
        EXPECT_EQ(tokenizer->Encode(texts[i]), expected[i]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Tokenizer, NamesAMissingFile) {
  const auto tokenizer = Tokenizer::Load("tests/data/no_such_folder");
  ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(tokenizer.status()),
              testing::HasSubstr("tests/data/no_such_folder/tokenizer.json"));
}

}  // namespace
}  // namespace cadre
