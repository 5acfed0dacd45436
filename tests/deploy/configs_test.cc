// The example configs parse, by the loader that `cadre train -c` uses, and their models have a
// possible shape. Runs in the repository root.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/config.h"
#include "model/decoder_spec.h"
#include "proto/config.pb.h"

namespace cadre {
namespace {

std::vector<std::string> Examples() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator("deploy/configs")) {
    if (entry.path().extension() == ".yaml") paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

TEST(DeployConfigs, TrainingExamplesParse) {
  const auto paths = Examples();
  ASSERT_FALSE(paths.empty());
  for (const std::string& path : paths) {
    config::TrainConfig config;
    const absl::Status status = LoadYaml(path, {}, &config);
    EXPECT_TRUE(status.ok()) << Message(status);
    const absl::Status shape = ValidateModelConfig(config.model());
    EXPECT_TRUE(shape.ok()) << path << ": " << Message(shape);
    EXPECT_EQ(config.global_batch_size() % config.micro_batch_size(), 0) << path;
    EXPECT_LE(config.data().seq_len(), config.model().max_position_embeddings()) << path;
  }
}

// What holds above would hold for an empty file too, were typing errors let through.
TEST(DeployConfigs, ATypingErrorIsRefused) {
  for (const std::string& path : Examples()) {
    config::TrainConfig config;
    const std::vector<std::string> overrides = {"model.hiden_size=256"};
    EXPECT_EQ(LoadYaml(path, overrides, &config).code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace cadre
