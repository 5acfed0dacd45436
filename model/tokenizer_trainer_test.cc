#include "model/tokenizer_trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/status.h"
#include "model/tokenizer.h"

namespace cadre {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kText =
    "low low low low low lower lower newest newest newest newest newest newest widest widest "
    "widest";

absl::StatusOr<TrainedTokenizer> TrainOn(const std::vector<std::string>& texts,
                                         TrainBpeOptions options) {
  CADRE_ASSIGN_OR_RETURN(BpeTrainer trainer, BpeTrainer::Create(std::move(options)));
  for (const std::string& text : texts) CADRE_RETURN_IF_ERROR(trainer.AddText(text));
  return trainer.Train();
}

TEST(BpeTrainer, JoinsTheMostFrequentPairFirst) {
  const auto trained = TrainOn({kText}, {.vocab_size = 259 + 8});
  ASSERT_TRUE(trained.ok()) << Message(trained.status());
  EXPECT_EQ(trained->vocab_size, 267);
  const auto json = nlohmann::json::parse(trained->tokenizer_json);
  const auto merges = json["model"]["merges"].get<std::vector<std::string>>();
  // "e s" and "s t" come 9 times each: the pair of lower ids goes first and takes the other along.
  EXPECT_EQ(merges[0], "e s");
  EXPECT_EQ(merges[1], "es t");
  EXPECT_EQ(json["model"]["vocab"]["<|endoftext|>"], 0);
  EXPECT_EQ(json["model"]["vocab"]["!"], 3);
}

TEST(BpeTrainer, TheSameInAnyOrderAndReadBack) {
  const std::vector<std::string> texts = {kText, "\u00e9t\u00e9 \u00e9t\u00e9", "12 12 12"};
  const TrainBpeOptions options{.vocab_size = 280};
  const auto first = TrainOn(texts, options);
  const auto second = TrainOn({texts[2], texts[0], texts[1]}, options);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->tokenizer_json, second->tokenizer_json);
  const std::string folder = testing::TempDir() + "/trained_tokenizer/nested";
  ASSERT_TRUE(first->Save(folder).ok());
  const auto tokenizer = Tokenizer::Load(folder);
  ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  EXPECT_EQ((*tokenizer)->vocab_size(), first->vocab_size);
  for (const std::string& text : texts) {
    const std::vector<int32_t> ids = (*tokenizer)->Encode(text);
    EXPECT_LE(ids.size(), text.size());
    EXPECT_EQ((*tokenizer)->Decode(ids, false), text);
  }
  std::filesystem::remove_all(testing::TempDir() + "/trained_tokenizer");
}

TEST(BpeTrainer, StopsWhereNothingIsFrequent) {
  const auto trained = TrainOn({"abab"}, {.vocab_size = 1000});
  ASSERT_TRUE(trained.ok());
  EXPECT_EQ(trained->vocab_size, 260);
}

TEST(BpeTrainer, ASpecialTokenIsNeverMadeByMerging) {
  TrainBpeOptions options{.vocab_size = 400, .special_tokens = {"low"}};
  options.bos_token = options.eos_token = options.pad_token = "low";
  const auto trained = TrainOn({kText}, options);
  ASSERT_TRUE(trained.ok()) << Message(trained.status());
  const auto tokenizer =
      Tokenizer::Parse("trained", trained->tokenizer_json, trained->tokenizer_config_json);
  ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  EXPECT_THAT((*tokenizer)->Encode("low"), testing::Not(testing::Contains(0)));
  EXPECT_THAT((*tokenizer)->Encode("low", {.parse_special = true}), ElementsAre(0));
  EXPECT_EQ((*tokenizer)->chat_template(), "");
}

TEST(BpeTrainer, ReportsProgressToTheEnd) {
  std::vector<int64_t> done;
  TrainBpeOptions options{.vocab_size = 270};
  options.progress = [&](int64_t now, int64_t total) {
    EXPECT_EQ(total, 11);
    done.push_back(now);
  };
  ASSERT_TRUE(TrainOn({kText}, options).ok());
  EXPECT_EQ(done.front(), 0);
  EXPECT_EQ(done.back(), 11);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
}

TEST(BpeTrainer, RefusesWhatCannotWork) {
  EXPECT_THAT(Message(TrainOn({kText}, {.vocab_size = 258}).status()),
              HasSubstr("vocab_size: 258; from 259"));
  EXPECT_THAT(Message(TrainOn({}, {}).status()), HasSubstr("there was none"));
  EXPECT_THAT(Message(TrainOn({""}, {}).status()), HasSubstr("there was none"));
  EXPECT_EQ(TrainOn({"a\xFF"}, {}).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(TrainOn({kText}, {.special_tokens = {"<a>", "<a>"}}).status()),
              HasSubstr("\"<a>\" is an entry already"));
  EXPECT_THAT(Message(TrainOn({kText}, {.special_tokens = {"Ġ"}}).status()),
              HasSubstr("an entry already"));
  EXPECT_THAT(Message(TrainOn({kText}, {.special_tokens = {"<a>"}}).status()),
              HasSubstr("\"<|endoftext|>\" is no special token"));
}

}  // namespace
}  // namespace cadre
