#include "model/quantized_folder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/host_allocator.h"

#include "model/model.h"
#include "model/score.h"
#include "model/test_tensors.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

class QuantizedFolder : public testing::Test {
 protected:
  QuantizedFolder() {
    std::string pattern = testing::TempDir() + "/cadre_quantized_XXXXXX";
    root_ = mkdtemp(pattern.data());
  }
  ~QuantizedFolder() override { fs::remove_all(root_); }

  Tensor Score(const std::string& folder, WeightFormat weights) {
    auto model = LoadModel(ctx_, folder, {.weights = weights});
    EXPECT_TRUE(model.ok()) << Message(model.status());
    if (!model.ok()) return {};
    Context ctx = ctx_;
    ctx.parameters = &(*model)->parameters();
    std::vector<int32_t> ids;
    for (int i = 0; i < 40; ++i) ids.push_back(i * 31 % 64);
    return ScoreBatch(ctx, (*model)->decoder(), PackSequences(allocator_, std::span(&ids, 1)))
        .logprobs;
  }

  static std::string Fixture(const std::string& name) { return "tests/golden/fixtures/" + name; }

  std::string root_;
  HostAllocator allocator_;
  Context ctx_{.allocator = &allocator_, .threads = 2};
};

TEST_F(QuantizedFolder, HasTheBitsOfQuantizingOnLoading) {
  for (const char* name : {"llama", "qwen2", "mixtral", "qwen3_moe", "deepseek_v3"}) {
    for (WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
      const std::string to = root_ + "/" + name + (format == WeightFormat::kInt8 ? "8" : "4");
      const absl::Status saved = SaveQuantizedFolder(ctx_, Fixture(name), to, format);
      ASSERT_TRUE(saved.ok()) << Message(saved);
      const Tensor ahead = Score(to, WeightFormat::kStored), now = Score(Fixture(name), format);
      EXPECT_TRUE(testing_tensors::SameBits(ahead, now)) << name;
      EXPECT_FALSE(testing_tensors::SameBits(now, Score(Fixture(name), WeightFormat::kStored)))
          << name;
    }
  }
}

TEST_F(QuantizedFolder, WhatDoesNotFitIsRefused) {
  const std::string to = root_ + "/four";
  ASSERT_TRUE(SaveQuantizedFolder(ctx_, Fixture("llama"), to, WeightFormat::kInt4).ok());
  const auto expect = [&](const absl::Status& status, std::string_view what) {
    EXPECT_NE(Message(status).find(what), std::string::npos) << Message(status);
  };
  expect(SaveQuantizedFolder(ctx_, Fixture("llama"), to, WeightFormat::kInt4), "not empty");
  expect(SaveQuantizedFolder(ctx_, to, root_ + "/again", WeightFormat::kInt8), "quantized already");
  expect(SaveQuantizedFolder(ctx_, Fixture("gpt_oss"), root_ + "/oss", WeightFormat::kInt8),
         "on loading alone");
  expect(LoadModel(ctx_, to, {.weights = WeightFormat::kInt8}).status(), "quantized already");
  expect(LoadModel(ctx_, to, {.gradients = true}).status(), "not trained");
  std::string config = *ReadFile(to + "/config.json");
  ASSERT_NE(config.find("int4-g32-v1"), std::string::npos);
  config.replace(config.find("int4-g32-v1"), 11, "int4-g32-v9");
  ASSERT_TRUE(WriteFileAtomic(to + "/config.json", config).ok());
  expect(LoadModel(ctx_, to, {}).status(), "int4-g32-v9");
  // The other format's shapes and types.
  config.replace(config.find("int4-g32-v9"), 11, "int8-row-v1");
  ASSERT_TRUE(WriteFileAtomic(to + "/config.json", config).ok());
  expect(LoadModel(ctx_, to, {}).status(), "codes is U8");
}

TEST_F(QuantizedFolder, AWeightThatIsNoNumberIsRefusedByName) {
  const std::string folder = root_ + "/bad", tensor = "model.layers.0.mlp.down_proj.weight";
  fs::copy(Fixture("llama"), folder);
  std::string file = *ReadFile(folder + "/model.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, file.data(), sizeof(header));
  const auto json = nlohmann::json::parse(file.substr(sizeof(header), header));
  const size_t begin = sizeof(header) + header + json[tensor]["data_offsets"][0].get<size_t>();
  // All ones are no number in any type.
  std::fill_n(file.begin() + static_cast<int64_t>(begin), 4, '\xff');
  ASSERT_TRUE(WriteFileAtomic(folder + "/model.safetensors", file).ok());
  for (WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const absl::Status loaded = LoadModel(ctx_, folder, {.weights = format}).status();
    EXPECT_EQ(loaded.code(), absl::StatusCode::kDataLoss);
    EXPECT_NE(Message(loaded).find(tensor), std::string::npos) << Message(loaded);
    const absl::Status saved = SaveQuantizedFolder(
        ctx_, folder, root_ + "/to" + (format == WeightFormat::kInt8 ? "8" : "4"), format);
    EXPECT_NE(Message(saved).find(tensor), std::string::npos) << Message(saved);
  }
  EXPECT_TRUE(LoadModel(ctx_, folder, {}).ok());
}

}  // namespace
}  // namespace cadre
