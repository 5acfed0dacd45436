#include "model/hf_folder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/host_allocator.h"
#include "core/safetensors_folder.h"
#include "model/model.h"
#include "model/param_layout.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

const char* const kFixtures[] = {"llama",     "llama_rope_llama3", "mistral", "qwen2",
                                 "qwen3",     "mixtral",           "olmoe",   "qwen2_moe",
                                 "qwen3_moe", "deepseek_v2",       "gpt_oss", "deepseek_v3"};

std::string FixturePath(const std::string& name) { return "tests/golden/fixtures/" + name; }

class HfFolder : public testing::Test {
 protected:
  HfFolder() {
    std::string pattern = testing::TempDir() + "/cadre_hf_XXXXXX";
    root_ = mkdtemp(pattern.data());
  }
  ~HfFolder() override { fs::remove_all(root_); }

  std::unique_ptr<Model> Load(const std::string& folder, DType dtype) {
    auto model = LoadModel(ctx_, folder, {.dtype = dtype});
    EXPECT_TRUE(model.ok()) << Message(model.status());
    return model.ok() ? *std::move(model) : nullptr;
  }

  absl::Status Save(Model& model, SaveWeightsOptions options) {
    options.config = &model.config();
    return SaveWeights(model.parameters(), WholeWeights(model.parameters()), options);
  }

  std::string root_;
  HostAllocator allocator_;
  Context ctx_{.allocator = &allocator_, .threads = 2};
};

// Names, types, shapes and bytes, whatever the files.
void ExpectSameTensors(const std::string& a, const std::string& b) {
  SafetensorsFolder x = *SafetensorsFolder::Open(a), y = *SafetensorsFolder::Open(b);
  EXPECT_EQ(x.tensors().size(), y.tensors().size()) << b;
  for (const auto& tensor : x.tensors()) {
    auto other = y.Find(tensor.entry->name);
    ASSERT_NE(other.entry, nullptr) << tensor.entry->name;
    EXPECT_EQ(tensor.entry->type, other.entry->type) << tensor.entry->name;
    EXPECT_EQ(tensor.entry->shape, other.entry->shape) << tensor.entry->name;
    auto p = tensor.Bytes(), q = other.Bytes();
    ASSERT_EQ(p.size(), q.size()) << tensor.entry->name;
    EXPECT_EQ(std::memcmp(p.data(), q.data(), p.size()), 0) << tensor.entry->name;
  }
}

TEST_F(HfFolder, RoundTripsBitForBit) {
  for (const char* name : kFixtures) {
    std::unique_ptr<Model> model = Load(FixturePath(name), DType::kF32);
    ASSERT_NE(model, nullptr) << name;
    std::string single = root_ + "/" + name, sharded = single + "_sharded";
    const FolderTensors& tensors = model->folder_tensors();
    ASSERT_TRUE(Save(*model, {.folder = single, .tensors = &tensors}).ok());
    ExpectSameTensors(FixturePath(name), single);
    ASSERT_TRUE(
        Save(*model, {.folder = sharded, .tensors = &tensors, .max_shard_bytes = 20000}).ok());
    EXPECT_FALSE(fs::exists(sharded + "/model.safetensors"));
    ExpectSameTensors(FixturePath(name), sharded);
    std::unique_ptr<Model> again = Load(sharded, DType::kF32);
    ASSERT_NE(again, nullptr) << name;
    ASSERT_TRUE(Save(*again, {.folder = sharded, .tensors = &tensors}).ok());
    EXPECT_FALSE(fs::exists(sharded + "/model.safetensors.index.json"));
    ExpectSameTensors(FixturePath(name), sharded);
  }
}

// Stored element -> value, of every tensor of the store.
std::map<std::string, std::map<int64_t, float>> StoredValues(ParameterStore& store) {
  std::map<std::string, std::map<int64_t, float>> values;
  for (ParamId id = 0; id < store.size(); ++id) {
    Tensor weight = store.Acquire(id, Lease::kForward);
    store.Release(id, Lease::kForward);
    ForEachRun(store.spec(id), 0, weight.numel(), [&](const ParamRun& run) {
      for (int64_t i = 0; i < run.count; ++i) {
        values[run.source->tensor][run.stored + i * run.stored_stride] =
            weight.data<float>()[run.local + i];
      }
    });
  }
  return values;
}

TEST_F(HfFolder, ARankReadsItsSliceAlone) {
  for (const char* name : {"llama", "deepseek_v3", "gpt_oss"}) {
    std::unique_ptr<Model> whole = Load(FixturePath(name), DType::kF32);
    auto expected = StoredValues(whole->parameters());
    // Two ranks: of each tensor, the first rank holds its first rows, the other one the rest.
    std::map<std::string, std::map<int64_t, float>> found;
    for (int rank = 0; rank < 2; ++rank) {
      ParameterStore store;
      store.set_part();
      for (ParamId id = rank; id < whole->parameters().size(); ++id) {  // one is on rank 0 alone
        ParamSpec spec = whole->parameters().spec(id);
        int64_t held = 0;
        for (ParamSource& source : spec.sources) {
          const int64_t cut = id == 0 ? -1 : 3;
          source.block = rank == 0 ? ParamBlock{.rows = cut} : ParamBlock{.row_begin = cut};
          held += BlockElements(source);
        }
        spec.shape = {held};
        store.Add(std::move(spec));
      }
      store.Allocate(allocator_, DType::kF32, {});
      Context ctx = ctx_;
      ctx.parameters = &store;
      auto loaded = LoadWeights(ctx, FixturePath(name), whole->config());
      ASSERT_TRUE(loaded.ok()) << Message(loaded.status());
      for (auto& [tensor, values] : StoredValues(store)) found[tensor].merge(values);
    }
    EXPECT_EQ(found, expected) << name;
  }
}

TEST_F(HfFolder, ConfigSurvives) {
  for (const char* name : kFixtures) {
    std::unique_ptr<Model> model = Load(FixturePath(name), DType::kF32);
    std::string folder = root_ + "/" + name;
    ASSERT_TRUE(Save(*model, {.folder = folder, .type = StoredType::kF32}).ok());
    auto read = [](const std::string& path) { return nlohmann::json::parse(*ReadFile(path)); };
    nlohmann::json before = read(FixturePath(name) + "/config.json");
    nlohmann::json after = read(folder + "/config.json");
    for (const auto& [key, value] : before.items()) EXPECT_EQ(after[key], value) << name << key;
    EXPECT_EQ(read(folder + "/generation_config.json"),
              read(FixturePath(name) + "/generation_config.json"));
  }
}

TEST_F(HfFolder, MixedTypesSurviveInBf16) {
  std::unique_ptr<Model> model = Load(FixturePath("deepseek_v3"), DType::kF32);
  std::string first = root_ + "/first", second = root_ + "/second";
  ASSERT_TRUE(Save(*model, {.folder = first, .type = StoredType::kBF16}).ok());
  SafetensorsFolder folder = *SafetensorsFolder::Open(first);
  EXPECT_EQ(folder.Find("lm_head.weight").entry->type, StoredType::kBF16);
  EXPECT_EQ(folder.Find("model.layers.1.mlp.gate.e_score_correction_bias").entry->type,
            StoredType::kF32);
  std::unique_ptr<Model> bf16 = Load(first, DType::kBF16);
  ASSERT_TRUE(Save(*bf16, {.folder = second, .tensors = &bf16->folder_tensors()}).ok());
  ExpectSameTensors(first, second);
}

// A copy of a fixture with its tensors changed.
class Edited {
 public:
  explicit Edited(const std::string& name) : source_(*SafetensorsFolder::Open(FixturePath(name))) {
    for (const auto& tensor : source_.tensors()) {
      tensors_[tensor.entry->name] = {*tensor.entry,
                                      {tensor.Bytes().begin(), tensor.Bytes().end()}};
    }
    name_ = name;
  }

  CarriedTensor& operator[](const std::string& tensor) { return tensors_[tensor]; }
  void Erase(const std::string& tensor) { tensors_.erase(tensor); }
  void Write(const std::string& folder) {
    fs::create_directories(folder);
    fs::copy_file(FixturePath(name_) + "/config.json", folder + "/config.json",
                  fs::copy_options::overwrite_existing);
    std::vector<SafetensorsEntry> entries;
    for (auto& [name, tensor] : tensors_) entries.push_back(tensor.entry);
    auto writer = SafetensorsWriter::Create(folder + "/model.safetensors", entries, {});
    for (auto& [name, tensor] : tensors_) CADRE_CHECK(writer->Append(tensor.bytes).ok());
    CADRE_CHECK(writer->Finish().ok());
  }

 private:
  SafetensorsFolder source_;
  std::string name_;
  std::map<std::string, CarriedTensor> tensors_;
};

CarriedTensor Small(const std::string& name) {
  return {{.name = name, .type = StoredType::kF32, .shape = {2}}, std::vector<std::byte>(8)};
}

TEST_F(HfFolder, WrongFoldersAreOneLine) {
  auto failure = [&](const std::string& fixture, auto edit) {
    Edited edited(fixture);
    edit(edited);
    edited.Write(root_ + "/x");
    return Message(LoadModel(ctx_, root_ + "/x", {.dtype = DType::kF32}).status());
  };
  std::string q = "model.layers.0.self_attn.q_proj.weight", file = root_ + "/x/model.safetensors";
  EXPECT_EQ(failure("llama", [&](Edited& e) { e.Erase(q); }),
            root_ + "/x: tensor " + q + " is missing (wanted: [32, 32])");
  EXPECT_EQ(failure("llama",
                    [&](Edited& e) {
                      e[q].entry.shape = {16, 64};
                    }),
            file + ": tensor " + q + " has shape [16, 64] (wanted: [32, 32])");
  EXPECT_EQ(failure("llama", [&](Edited& e) { e[q].entry.type = StoredType::kI32; }),
            file + ": tensor " + q + " has type I32 (allowed: F32, BF16, F16, F64)");
  EXPECT_EQ(failure("llama", [&](Edited& e) { e["model.extra"] = Small("model.extra"); }),
            file + ": tensor model.extra [2] belongs to no part of a llama");
  EXPECT_NE(failure("llama_rope_llama3",
                    [&](Edited& e) {
                      e["lm_head.weight"] = e["model.embed_tokens.weight"];
                      e["lm_head.weight"].entry.name = "lm_head.weight";
                      e["lm_head.weight"].bytes[0] ^= std::byte{1};
                    })
                .find("lm_head.weight differs"),
            std::string::npos);
  EXPECT_EQ(LoadModel(ctx_, root_ + "/none", {}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(HfFolder, MultiTokenPredictionLayersAreCarried) {
  Edited edited("deepseek_v3");
  edited["model.layers.3.eh_proj.weight"] = Small("model.layers.3.eh_proj.weight");
  edited.Write(root_ + "/x");
  EXPECT_FALSE(LoadModel(ctx_, root_ + "/x", {.dtype = DType::kF32}).ok());
  nlohmann::json config = nlohmann::json::parse(*ReadFile(root_ + "/x/config.json"));
  config["num_nextn_predict_layers"] = 1;
  ASSERT_TRUE(WriteFileAtomic(root_ + "/x/config.json", config.dump()).ok());
  std::unique_ptr<Model> model = Load(root_ + "/x", DType::kF32);
  ASSERT_NE(model, nullptr);
  ASSERT_TRUE(Save(*model, {.folder = root_ + "/y", .tensors = &model->folder_tensors()}).ok());
  ExpectSameTensors(root_ + "/x", root_ + "/y");
}

TEST_F(HfFolder, LayersBeyondThePredictedOnesAreRefused) {
  nlohmann::json config;
  for (std::string layer : {"5", "99999999999999999999", "-1", "3x", ""}) {
    const std::string name = "model.layers." + layer + ".eh_proj.weight";
    Edited edited("deepseek_v3");
    edited[name] = Small(name);
    edited.Write(root_ + "/x");
    config = nlohmann::json::parse(*ReadFile(root_ + "/x/config.json"));
    config["num_nextn_predict_layers"] = 2;
    ASSERT_TRUE(WriteFileAtomic(root_ + "/x/config.json", config.dump()).ok());
    absl::Status status = LoadModel(ctx_, root_ + "/x", {.dtype = DType::kF32}).status();
    EXPECT_NE(Message(status).find(name), std::string::npos) << Message(status);
  }
  config["num_nextn_predict_layers"] = 2147483647;
  ASSERT_TRUE(WriteFileAtomic(root_ + "/x/config.json", config.dump()).ok());
  absl::Status status = LoadModel(ctx_, root_ + "/x", {.dtype = DType::kF32}).status();
  EXPECT_NE(Message(status).find("num_nextn_predict_layers: 2147483647"), std::string::npos)
      << Message(status);
}

TEST_F(HfFolder, ConfigsThatClaimTooMuchAllocateNothing) {
  Edited edited("llama");
  edited.Write(root_ + "/x");
  nlohmann::json config = nlohmann::json::parse(*ReadFile(root_ + "/x/config.json"));
  config["intermediate_size"] = 1 << 24;
  config["hidden_size"] = 1 << 18;
  ASSERT_TRUE(WriteFileAtomic(root_ + "/x/config.json", config.dump()).ok());
  EXPECT_FALSE(LoadModel(ctx_, root_ + "/x", {.dtype = DType::kF32}).ok());
  EXPECT_LT(allocator_.usage().peak_bytes, size_t{1} << 20);
}

}  // namespace
}  // namespace cadre
