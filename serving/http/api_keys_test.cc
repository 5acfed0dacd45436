#include "serving/http/api_keys.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/file.h"

namespace cadre {
namespace {

class KeyFile : public testing::Test {
 protected:
  absl::StatusOr<std::vector<std::string>> Read(const std::string& text, mode_t mode = 0600) {
    EXPECT_TRUE(WriteFileAtomic(path_, text).ok());
    EXPECT_EQ(chmod(path_.c_str(), mode), 0);
    return ReadKeyFile(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  const std::string path_ = testing::TempDir() + "cadre_api_keys_" + std::to_string(getpid());
};

TEST_F(KeyFile, HasAKeyALine) {
  auto keys = Read("# the shop's\n\nalpha\r\nbe#ta\n gamma\n");
  EXPECT_NE(Message(keys.status()).find("line 5"), std::string::npos) << keys.status();
  EXPECT_EQ(Message(keys.status()).find("gamma"), std::string::npos);
  EXPECT_EQ(*Read("# the shop's\n\nalpha\r\nbe#ta\n"),
            (std::vector<std::string>{"alpha", "be#ta"}));
  EXPECT_EQ(*Read("last"), std::vector<std::string>{"last"});
  for (const char* text : {"", "# none\n", "a\tb\n", "a\x7f\n", "caf\xc3\xa9\n"}) {
    EXPECT_EQ(Read(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST_F(KeyFile, IsNotForOthers) {
  for (mode_t mode : {0644, 0604, 0602, 0660, 0620, 0666}) {
    EXPECT_EQ(Read("key\n", mode).status().code(), absl::StatusCode::kPermissionDenied) << mode;
  }
  for (mode_t mode : {0600, 0640, 0400}) EXPECT_TRUE(Read("key\n", mode).ok()) << mode;
  EXPECT_EQ(ReadKeyFile(path_ + "_none").status().code(), absl::StatusCode::kNotFound);
}

TEST(ApiKeys, AreFoundWhole) {
  const ApiKeys keys(std::vector<std::string>{"secret", "other"});
  // sha256("secret")
  EXPECT_EQ(keys.Find("secret"), "2bb80d53");
  EXPECT_TRUE(keys.Find("other").has_value());
  for (const char* wrong : {"", "secre", "secretsecret", "Secret", "secret "}) {
    EXPECT_FALSE(keys.Find(wrong).has_value()) << wrong;
  }
  EXPECT_FALSE(ApiKeys().Find("secret").has_value());
  EXPECT_EQ(GivenKey("Bearer a", "b"), "a");
  EXPECT_EQ(GivenKey("Basic a", "b"), "b");
}

}  // namespace
}  // namespace cadre
