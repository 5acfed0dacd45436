#include "model/hf_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace cadre {
namespace {

using Json = nlohmann::json;

Json Llama() {
  return {{"model_type", "llama"},     {"vocab_size", 96},
          {"hidden_size", 32},         {"intermediate_size", 48},
          {"num_hidden_layers", 2},    {"num_attention_heads", 4},
          {"num_key_value_heads", 2},  {"rms_norm_eps", 1e-5},
          {"eos_token_id", 2},         {"torch_dtype", "bfloat16"},
          {"pretraining_tp", 1},       {"rope_scaling", nullptr},
          {"nested", {{"a", {1, 2}}}}, {"max_position_embeddings", 128}};
}

HfConfig Parse(const Json& json) {
  absl::StatusOr<HfConfig> config = ParseHfConfig(json.dump(), "config.json");
  EXPECT_TRUE(config.ok()) << Message(config.status());
  return config.ok() ? *config : HfConfig();
}

std::string Failure(const std::string& text) {
  return Message(ParseHfConfig(text, "config.json").status());
}

TEST(HfConfig, UnknownKeysAndNullsSurvive) {
  Json json = Llama();
  Json written = Json::parse(HfConfigJson(Parse(json), "bfloat16"));
  for (const auto& [key, value] : json.items()) EXPECT_EQ(written[key], value) << key;
}

TEST(HfConfig, ReadsItsOwnOutput) {
  HfConfig first = Parse(Llama());
  std::string text = HfConfigJson(first, "bfloat16");
  HfConfig second = *ParseHfConfig(text, "config.json");
  EXPECT_EQ(HfConfigJson(second, "bfloat16"), text);
  EXPECT_EQ(second.model.num_key_value_heads(), 2);
  EXPECT_EQ(second.model.architectures(0), "LlamaForCausalLM");
}

// Other programs must not take a ladder model's weights for those of the standard wiring.
TEST(HfConfig, ALadderModelHasATypeOfItsOwn) {
  Json json = Llama();
  json["residual"] = "ladder";
  json["ladder_layers"] = {1};
  const std::string text = HfConfigJson(Parse(json), "bfloat16");
  const Json written = Json::parse(text);
  EXPECT_EQ(written["model_type"], "ladder_llama");
  EXPECT_EQ(written["architectures"][0], "LadderLlamaForCausalLM");
  EXPECT_EQ(written["ladder_layers"], json["ladder_layers"]);
  const HfConfig again = Parse(written);
  EXPECT_EQ(again.model.model_type(), "llama");
  EXPECT_EQ(again.model.residual(), "ladder");
  EXPECT_EQ(HfConfigJson(again, "bfloat16"), text);
}

TEST(HfConfig, RopeParametersFold) {
  Json json = Llama();
  json["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 5e5}};
  HfConfig config = Parse(json);
  EXPECT_EQ(config.model.rope_theta(), 5e5);
  EXPECT_EQ(config.model.rope_scaling().rope_type(), "linear");
  EXPECT_EQ(config.model.rope_scaling().factor(), 2.0);
  Json written = Json::parse(HfConfigJson(config, "bfloat16"));
  EXPECT_EQ(written["rope_parameters"], json["rope_parameters"]);
  EXPECT_EQ(written["rope_theta"], 5e5);

  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 7e5}};
  EXPECT_FALSE(Parse(json).model.has_rope_scaling());
  EXPECT_EQ(Parse(json).model.rope_theta(), 7e5);
}

TEST(HfConfig, AbsentIsNotNullInMistral) {
  Json json = Llama();
  json["model_type"] = "mistral";
  EXPECT_EQ(Parse(json).model.sliding_window(), 4096);
  json["sliding_window"] = nullptr;
  HfConfig config = Parse(json);
  EXPECT_FALSE(config.model.has_sliding_window());
  EXPECT_TRUE(Json::parse(HfConfigJson(config, "float32"))["sliding_window"].is_null());
}

TEST(HfConfig, OneOrSeveralEnds) {
  Json json = Llama();
  json["eos_token_id"] = {2, 5};
  HfConfig config = Parse(json);
  EXPECT_EQ(config.model.eos_token_id_size(), 2);
  EXPECT_EQ(Json::parse(HfConfigJson(config, "float32"))["eos_token_id"], Json({2, 5}));
  EXPECT_EQ(Json::parse(GenerationConfigJson(config))["eos_token_id"], Json({2, 5}));
}

TEST(HfConfig, ErrorsNameFileKeyAndValue) {
  auto with = [](const char* key, const Json& value) {
    Json json = Llama();
    json[key] = value;
    return Failure(json.dump());
  };
  EXPECT_EQ(with("hidden_size", "big"),
            "config.json: hidden_size: \"big\" (allowed: a whole number of at most 2^31 - 1)");
  EXPECT_EQ(with("hidden_size", 1.5),
            "config.json: hidden_size: 1.5 (allowed: a whole number of at most 2^31 - 1)");
  EXPECT_EQ(with("hidden_size", 1e300),
            "config.json: hidden_size: 1e+300 (allowed: a whole number of at most 2^31 - 1)");
  EXPECT_EQ(with("tie_word_embeddings", 3),
            "config.json: tie_word_embeddings: 3 (allowed: true, false)");
  EXPECT_EQ(with("rope_scaling", 3), "config.json: rope_scaling: 3 (allowed: an object)");
  EXPECT_EQ(with("num_attention_heads", 5),
            "config.json: num_attention_heads: 5 is no multiple of num_key_value_heads 2 (5 = 2 x "
            "2 + 1)");
  EXPECT_EQ(Failure("[1]"), "config.json: not a JSON object");
  EXPECT_EQ(Failure("{\"a\": "), "config.json: not a JSON object");
  EXPECT_EQ(Failure("{}"), "config.json: model_type: missing");
  EXPECT_EQ(Failure("{\"a\":" + std::string(5000, '[') + std::string(5000, ']') + "}"),
            "config.json: nested deeper than 64 levels");
}

}  // namespace
}  // namespace cadre
