#include "serving/http/text_constraints.h"

#include <gtest/gtest.h>

#include "serving/http/test_tokenizer.h"

namespace cadre {
namespace {

TEST(TextConstraints, TooManyGrammarsAtOnceAreForLater) {
  auto tokenizer = Tokenizer::Parse("test", TokenizerJson());
  ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  TextConstraints constraints(**tokenizer, {.max_grammars = 0, .max_live_bytes = 1000});
  std::shared_ptr<const CompiledGrammar> held;
  auto find = [&](std::string regex) {
    ApiRequest request;
    request.form = {TextForm::Kind::kRegex, std::move(regex), "guided_regex"};
    std::shared_ptr<const CompiledGrammar> grammar;
    auto error = constraints.Find(request, {}, &grammar);
    if (!error) held = std::move(grammar);
    return error;
  };
  ASSERT_FALSE(find("a{1000}"));
  const auto full = find("a{1001}");
  ASSERT_TRUE(full);
  EXPECT_EQ(full->status, 429);
  EXPECT_GT(full->retry_after, 0);
  held.reset();
  const auto wrong = find("a{1000000000}");
  ASSERT_TRUE(wrong);
  EXPECT_EQ(wrong->status, 400);
  EXPECT_EQ(wrong->param, "guided_regex");
  EXPECT_FALSE(find("a{1001}"));
}

}  // namespace
}  // namespace cadre
