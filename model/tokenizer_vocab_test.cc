// Ids of public vocabularies, where their test files are present beside the repository.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/status.h"
#include "model/tokenizer.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> ReadCases(const fs::path& path) {
  const std::string separator = "\n__ggml_vocab_test__\n";
  const std::string text = ReadAll(path);
  std::vector<std::string> cases;
  size_t begin = 0;
  for (size_t at = text.find(separator); at != std::string::npos;
       at = text.find(separator, begin)) {
    cases.push_back(text.substr(begin, at - begin));
    begin = at + separator.size();
  }
  return cases;
}

std::vector<std::vector<int32_t>> ReadIds(const fs::path& path) {
  std::ifstream file(path);
  std::vector<std::vector<int32_t>> all;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::vector<int32_t>& ids = all.emplace_back();
    for (int32_t id; words >> id;) ids.push_back(id);
  }
  return all;
}

class VocabularyTest : public testing::TestWithParam<const char*> {};

TEST_P(VocabularyTest, EncodesAndDecodesEveryCase) {
  fs::path found;
  for (const char* up : {"..", "../.."}) {
    const fs::path folder = fs::path(up) / "shared/tokenizers" / GetParam();
    if (found.empty() && fs::exists(folder)) found = folder;
  }
  if (found.empty()) GTEST_SKIP() << "no ../shared/tokenizers/" << GetParam();
  const auto tokenizer = Tokenizer::Load(found);
  ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  const std::vector<std::string> cases = ReadCases(found / "cases.txt");
  const auto expected = ReadIds(found / "expected_ids.txt");
  ASSERT_GT(cases.size(), 40u);
  ASSERT_EQ(cases.size(), expected.size());
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::vector<int32_t> ids = (*tokenizer)->Encode(cases[i]);
    EXPECT_EQ(ids, expected[i]) << "case " << i << ": " << cases[i];
    EXPECT_EQ((*tokenizer)->Decode(ids, false), cases[i]) << "case " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Public, VocabularyTest, testing::Values("gpt-2", "llama-spm"),
                         [](const auto& info) {
                           return std::string(info.param) == "gpt-2" ? "Gpt2" : "LlamaSpm";
                         });

}  // namespace
}  // namespace cadre
