// The golden fixtures written as GGUF, against the folders that they come from.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>

#include "core/file.h"
#include "core/host_allocator.h"

#include "core/safetensors_folder.h"
#include "model/gguf_model.h"
#include "model/gguf_test_util.h"
#include "model/initialize.h"
#include "model/score.h"
#include "model/test_tensors.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using testing_gguf::Encode;
using testing_gguf::Writer;

// A fixture's tensors by their names, and what they are after being written.
using Values = std::map<std::string, std::vector<float>>;
// The type of a tensor [.., columns] of this name (GGUF's).
using TypeOf = std::function<uint32_t(const std::string& name, int64_t columns)>;

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

std::string GgufName(std::string name) {
  static const std::pair<const char*, const char*> kNames[] = {
      {"model.embed_tokens", "token_embd"},
      {"model.norm", "output_norm"},
      {"lm_head", "output"},
      {"model.layers.", "blk."},
      {"input_layernorm", "attn_norm"},
      {"post_attention_layernorm", "ffn_norm"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"},
      {"block_sparse_moe.gate", "ffn_gate_inp"},
      {"mlp.gate.", "ffn_gate_inp."},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  for (const auto& [from, to] : kNames) name = Replaced(name, from, to);
  return name;
}

class GgufLoad : public testing::TestWithParam<const char*> {
 protected:
  GgufLoad() {
    std::string pattern = testing::TempDir() + "/cadre_gguf_XXXXXX";
    root_ = mkdtemp(pattern.data());
  }
  ~GgufLoad() override { fs::remove_all(root_); }

  std::string fixture() const {
    return wide_ ? root_ + "/wide" : std::string("tests/golden/fixtures/") + GetParam();
  }
  // A model of the fixture's kind whose rows are long enough for blocks of 256, in its place.
  void Widen() {
    HfConfig config = *LoadHfConfig(fixture());
    config::ModelConfig& m = config.model;
    m.set_hidden_size(256);
    m.set_intermediate_size(512);
    if (m.has_moe_intermediate_size()) m.set_moe_intermediate_size(256);
    m.set_head_dim(256 / m.num_attention_heads());
    auto model = CreateModel(ctx_, config, {.dtype = DType::kF32});
    ASSERT_TRUE(model.ok()) << Message(model.status());
    Context ctx = ctx_;
    ctx.parameters = &(*model)->parameters();
    InitializeParameters(ctx, 7);
    wide_ = true;
    const absl::Status saved =
        SaveWeights((*model)->parameters(), WholeWeights((*model)->parameters()),
                    {.folder = fixture(), .config = &config, .type = StoredType::kF32});
    ASSERT_TRUE(saved.ok()) << Message(saved);
  }
  bool llama() const {
    return std::string(GetParam()) == "llama" || std::string(GetParam()) == "mixtral";
  }

  void Keys(Writer* writer) {
    const HfConfig hf = *LoadHfConfig(fixture());
    const config::ModelConfig& m = hf.model;
    const std::string arch = llama()                         ? "llama"
                             : m.model_type() == "qwen3_moe" ? "qwen3moe"
                                                             : m.model_type();
    const auto u32 = [&](const char* key, int64_t value) {
      if (value > 0) writer->U32(arch + "." + key, static_cast<uint32_t>(value));
    };
    writer->String("general.architecture", arch);
    u32("embedding_length", m.hidden_size());
    u32("block_count", m.num_hidden_layers());
    u32("context_length", m.max_position_embeddings());
    u32("attention.head_count", m.num_attention_heads());
    u32("attention.head_count_kv", m.num_key_value_heads());
    u32("attention.key_length", m.head_dim());
    u32("feed_forward_length", m.intermediate_size());
    u32("expert_count", std::max(m.num_experts(), m.num_local_experts()));
    u32("expert_used_count", m.num_experts_per_tok());
    u32("expert_feed_forward_length", m.moe_intermediate_size());
    writer->F32(arch + ".attention.layer_norm_rms_epsilon", static_cast<float>(m.rms_norm_eps()));
    writer->F32(arch + ".rope.freq_base", static_cast<float>(m.rope_theta()));
    head_dim_ = m.head_dim() > 0 ? m.head_dim() : m.hidden_size() / m.num_attention_heads();
  }

  // llama's rotary pairs side by side, as its converter writes them.
  std::vector<float> Interleaved(const std::vector<float>& rows, int64_t columns) const {
    std::vector<float> out(rows.size());
    const int64_t half = head_dim_ / 2, count = static_cast<int64_t>(rows.size()) / columns;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t in_head = r % head_dim_;
      const int64_t to = r - in_head + in_head % half * 2 + in_head / half;
      std::copy_n(rows.begin() + r * columns, columns, out.begin() + to * columns);
    }
    return out;
  }
  std::vector<float> Halved(const std::vector<float>& rows, int64_t columns) const {
    std::vector<float> out(rows.size());
    const int64_t half = head_dim_ / 2, count = static_cast<int64_t>(rows.size()) / columns;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t in_head = r % head_dim_;
      const int64_t from = r - in_head + in_head % half * 2 + in_head / half;
      std::copy_n(rows.begin() + from * columns, columns, out.begin() + r * columns);
    }
    return out;
  }

  // FILE.gguf of the fixture, and a folder whose weights are what the file's blocks stand for.
  void Write(const TypeOf& type_of, bool leave_one_out = false) {
    Writer writer;
    Keys(&writer);
    const SafetensorsFolder folder = *SafetensorsFolder::Open(fixture());
    std::map<std::string, std::map<int, const SafetensorsEntry*>> experts;
    std::map<std::string, std::vector<float>> written;
    const auto floats = [&](const SafetensorsFolder::Tensor& tensor) {
      std::vector<float> values(tensor.Bytes().size() / 4);
      std::memcpy(values.data(), tensor.Bytes().data(), tensor.Bytes().size());
      return values;
    };
    struct Stack {
      std::vector<std::string> names;
      std::vector<int64_t> shape;
    };
    std::map<std::string, Stack> stacks;
    for (const auto& tensor : folder.tensors()) {
      const std::string& name = tensor.entry->name;
      if (const size_t at = name.find("experts."); at != std::string::npos) {
        const std::string layer =
            name.substr(0, name.find("mlp") != std::string::npos ? name.find("mlp")
                                                                 : name.find("block_sparse"));
        const std::string kind = name.substr(name.find('.', at + 8) + 1);
        const std::string part = kind[0] == 'g' || kind.starts_with("w1")   ? "gate"
                                 : kind[0] == 'u' || kind.starts_with("w3") ? "up"
                                                                            : "down";
        Stack& stack = stacks[GgufName(layer) + "ffn_" + part + "_exps.weight"];
        const auto expert = static_cast<size_t>(std::stoi(name.substr(at + 8)));
        if (stack.names.size() <= expert) stack.names.resize(expert + 1);
        stack.names[expert] = name;
        stack.shape = tensor.entry->shape;
        continue;
      }
      if (leave_one_out && name == "model.norm.weight") continue;
      const std::string to = GgufName(name);
      const std::vector<int64_t>& shape = tensor.entry->shape;
      const bool rotary = llama() && (to.find("attn_q.") != std::string::npos ||
                                      to.find("attn_k.") != std::string::npos);
      std::vector<float> values = floats(tensor);
      if (rotary) values = Interleaved(values, shape.back());
      const uint32_t type = shape.size() == 1 ? 0 : type_of(to, shape.back());
      writer.Tensor(to, type, shape, Encode(type, &values));
      written[name] = rotary ? Halved(values, shape.back()) : values;
    }
    for (const auto& [to, stack] : stacks) {
      const uint32_t type = type_of(to, stack.shape.back());
      std::string bytes;
      for (const std::string& name : stack.names) {
        std::vector<float> values = floats(folder.Find(name));
        bytes += Encode(type, &values);
        written[name] = values;
      }
      std::vector<int64_t> shape = stack.shape;
      shape.insert(shape.begin(), static_cast<int64_t>(stack.names.size()));
      writer.Tensor(to, type, shape, bytes);
    }
    ASSERT_TRUE(WriteFileAtomic(path(), writer.Bytes()).ok());
    WriteFolder(folder, written);
  }

  void WriteFolder(const SafetensorsFolder& folder,
                   const std::map<std::string, std::vector<float>>& written) {
    fs::create_directories(root_ + "/folder");
    fs::copy_file(fixture() + "/config.json", root_ + "/folder/config.json",
                  fs::copy_options::overwrite_existing);
    std::vector<SafetensorsEntry> entries;
    for (const auto& tensor : folder.tensors()) {
      entries.push_back(
          {.name = tensor.entry->name, .type = StoredType::kF32, .shape = tensor.entry->shape});
    }
    auto writer = SafetensorsWriter::Create(root_ + "/folder/model.safetensors", entries, {});
    ASSERT_TRUE(writer.ok()) << Message(writer.status());
    for (const SafetensorsEntry& entry : entries) {
      const auto found = written.find(entry.name);
      if (found == written.end()) return;
      ASSERT_TRUE(writer->Append(std::as_bytes(std::span(found->second))).ok());
    }
    ASSERT_TRUE(writer->Finish().ok());
  }

  std::string path() const { return root_ + "/model.gguf"; }

  Tensor Score(const std::string& path, DType dtype, int64_t rows = 0) {
    auto model = LoadModel(ctx_, path, {.dtype = dtype});
    EXPECT_TRUE(model.ok()) << Message(model.status());
    Context ctx = ctx_;
    ctx.parameters = &(*model)->parameters();
    std::vector<int32_t> ids;
    for (int i = 0; i < 40; ++i) ids.push_back(i * 31 % 96);
    if (rows > 0) ids.resize(static_cast<size_t>(rows));
    const Batch batch = PackSequences(allocator_, std::span(&ids, 1));
    return ScoreBatch(ctx, (*model)->decoder(), batch).logprobs;
  }

  std::string root_;
  bool wide_ = false;
  int64_t head_dim_ = 0;
  HostAllocator allocator_;
  Context ctx_{.allocator = &allocator_, .threads = 2};
};

TEST_P(GgufLoad, FloatsAreTheFolders) {
  for (uint32_t type : {0u, 1u}) {
    Write([&](const std::string&, int64_t) { return type; });
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      EXPECT_TRUE(testing_tensors::SameBits(Score(path(), dtype), Score(root_ + "/folder", dtype)))
          << type;
    }
  }
}

// Kinds mixed within fused parameters, too.
TEST_P(GgufLoad, QuantizedBlocksMeanWhatTheySay) {
  const auto quantized = [](const std::string& name, int64_t columns) -> uint32_t {
    if (columns % 32 != 0 || name.find("gate_inp") != std::string::npos) return 0;
    return name.find("attn_v") != std::string::npos || name == "output.weight" ? 8 : 2;
  };
  Write(quantized);
  const Tensor want = Score(root_ + "/folder", DType::kF32);
  EXPECT_LT(testing_tensors::RelativeError(Score(path(), DType::kF32), want), 1e-5);
  EXPECT_LT(testing_tensors::RelativeError(Score(path(), DType::kBF16), want), 0.03);
  const Tensor whole = Score(path(), DType::kBF16);
  EXPECT_TRUE(testing_tensors::SameBits(Score(path(), DType::kBF16, 3), whole.Narrow(0, 3)));
}

// Kinds of 256 values to a block, and bf16, mixed within fused parameters as files have them.
TEST_P(GgufLoad, SuperblocksMeanWhatTheySay) {
  ASSERT_NO_FATAL_FAILURE(Widen());
  const auto mixed = [](const std::string& name, int64_t columns) -> uint32_t {
    EXPECT_EQ(columns % 256, 0) << name;
    if (name.find("gate_inp") != std::string::npos) return 0;
    if (name.find("token_embd") != std::string::npos) return 30;
    const bool finer = name.find("attn_v") != std::string::npos ||
                       name.find("ffn_down") != std::string::npos || name == "output.weight";
    return finer ? 14 : 12;
  };
  for (const bool floats : {true, false}) {
    if (floats) {
      Write([](const std::string&, int64_t) { return 30u; });
    } else {
      Write(mixed);
    }
    const Tensor want = Score(root_ + "/folder", DType::kF32);
    EXPECT_LT(testing_tensors::RelativeError(Score(path(), DType::kF32), want), 1e-5) << floats;
    EXPECT_LT(testing_tensors::RelativeError(Score(path(), DType::kBF16), want), 0.03) << floats;
  }
  auto model = LoadModel(ctx_, path(), {});
  ASSERT_TRUE(model.ok()) << Message(model.status());
  EXPECT_GT((*model)->parameters().quantized_bytes(), 0u) << "blocks are not turned into floats";
}

// As `cadre serve` reads it before the weights; a file may be larger than any config.json.
TEST_P(GgufLoad, TheConfigIsReadFromTheFile) {
  Write([](const std::string&, int64_t) { return 0u; });
  const auto config = LoadHfConfig(path());
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->model.hidden_size(), LoadHfConfig(fixture())->model.hidden_size());
}

TEST_P(GgufLoad, WhatIsWrongIsNamed) {
  Write([](const std::string&, int64_t) { return 0u; }, /*leave_one_out=*/true);
  EXPECT_NE(Message(LoadModel(ctx_, path(), {}).status()).find("output_norm.weight is missing"),
            std::string::npos);
  Write([](const std::string&, int64_t columns) { return columns % 32 == 0 ? 8u : 0u; });
  const auto again = LoadModel(ctx_, path(), {.weights = WeightFormat::kInt4});
  EXPECT_NE(Message(again.status()).find("Q8_0 already"), std::string::npos);
  EXPECT_EQ(LoadModel(ctx_, path(), {.gradients = true}).status().code(),
            absl::StatusCode::kUnimplemented);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, GgufLoad,
                         testing::Values("llama", "qwen2", "qwen3", "mixtral", "qwen3_moe"));

TEST(GgufConfig, OtherArchitecturesAreNamed) {
  Writer writer;
  writer.String("general.architecture", "gemma2");
  const std::string bytes = writer.Bytes();
  const GgufFile file = *GgufFile::Parse("test.gguf", std::as_bytes(std::span(bytes)));
  const absl::Status status = GgufConfig(file).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(Message(status).find("'gemma2'"), std::string::npos) << Message(status);
}

}  // namespace
}  // namespace cadre
