#include "core/config.h"

#include <gmock/gmock.h>
#include <google/protobuf/struct.pb.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "proto/config.pb.h"

namespace cadre {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

config::TrainConfig Parse(const std::string& text) {
  config::TrainConfig message;
  const absl::Status status = ParseYaml(text, "t.yaml", &message);
  EXPECT_TRUE(status.ok()) << status;
  return message;
}

std::string ParseError(const std::string& text) {
  config::TrainConfig message;
  const absl::Status status = ParseYaml(text, "t.yaml", &message);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 200);
  return Message(status);
}

std::string SetError(const std::string& override) {
  config::TrainConfig message;
  message.mutable_data()->add_sources()->set_path("a");
  const std::vector<std::string> overrides = {override};
  const absl::Status status = ApplyOverrides(overrides, &message);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << override;
  return Message(status);
}

config::TrainConfig Set(config::TrainConfig message, const std::vector<std::string>& overrides) {
  const absl::Status status = ApplyOverrides(overrides, &message);
  EXPECT_TRUE(status.ok()) << status;
  return message;
}

constexpr char kConfig[] = R"(# a comment
model:
  model_type: qwen3_moe
  rms_norm_eps: 1e-6
  eos_token_id: 7
  layer_types: [full_attention, sliding_attention]
  rope_scaling: {rope_type: yarn, factor: 4, truncate: false}
  sliding_window: null
data:
  sources:
    - path: /data/a
      weight: 0.7
    - {path: "b: #", kind: chat}
lr_schedule: {kind: wsd}
train_steps: 1e4
seed: 18446744073709551615
)";

TEST(Config, ReadsEveryKindOfValue) {
  const config::TrainConfig c = Parse(kConfig);
  EXPECT_EQ(c.model().model_type(), "qwen3_moe");
  EXPECT_EQ(c.model().rms_norm_eps(), 1e-6);
  EXPECT_THAT(c.model().eos_token_id(), ElementsAre(7));
  EXPECT_THAT(c.model().layer_types(), ElementsAre("full_attention", "sliding_attention"));
  EXPECT_TRUE(c.model().rope_scaling().has_truncate());
  EXPECT_FALSE(c.model().rope_scaling().truncate());
  EXPECT_FALSE(c.model().has_sliding_window());
  EXPECT_EQ(c.data().sources_size(), 2);
  EXPECT_EQ(c.data().sources(0).weight(), 0.7);
  EXPECT_EQ(c.data().sources(1).path(), "b: #");
  EXPECT_EQ(c.data().sources(1).kind(), config::SOURCE_KIND_CHAT);
  EXPECT_EQ(c.lr_schedule().kind(), config::SCHEDULE_WSD);
  EXPECT_EQ(c.train_steps(), 10000);
  EXPECT_EQ(c.seed(), 18446744073709551615u);
}

TEST(Config, WhatIsNotGivenReadsAsTheSchemasDefault) {
  const config::TrainConfig c = Parse("");
  EXPECT_FALSE(c.has_optimizer());
  EXPECT_EQ(c.optimizer().lr(), 3e-4);
  EXPECT_EQ(c.data().seq_len(), 1024);
}

TEST(Config, ErrorsNameFileLineFieldValueAndWhatIsAllowed) {
  EXPECT_EQ(ParseError("optimizer:\n  weight_decy: 1\n"),
            "t.yaml:2: optimizer.weight_decy: unknown field; did you mean weight_decay?");
  EXPECT_THAT(ParseError("log: {zzz: 1}"), HasSubstr("fields of LogConfig: interval, tensorboard"));
  EXPECT_EQ(ParseError("\n\nlr_schedule:\n  kind: cosin"),
            "t.yaml:4: lr_schedule.kind: \"cosin\" is not allowed; allowed: cosine, wsd, linear, "
            "constant");
  EXPECT_EQ(ParseError("dropout: 1.5"),
            "t.yaml:1: dropout: 1.5 is out of range; allowed: 0 to 0.99");
  EXPECT_EQ(ParseError("threads: -1"), "t.yaml:1: threads: -1 is out of range; allowed: 0 to 4096");
  EXPECT_THAT(ParseError("model: {eos_token_id: [3, -1]}"),
              HasSubstr("eos_token_id[1]: -1 is out"));
  EXPECT_THAT(ParseError("micro_batch_size: 99999999999"), HasSubstr("allowed: 1 to 2147483647"));
  EXPECT_THAT(ParseError("train_steps: 1e30"), HasSubstr("out of range"));
  EXPECT_THAT(ParseError("seed: -1"), HasSubstr("out of range"));
}

TEST(Config, WrongTypesAreRefused) {
  EXPECT_THAT(ParseError("train_steps: ten"), HasSubstr("\"ten\" is no whole number"));
  EXPECT_THAT(ParseError("train_steps: 1.5"), HasSubstr("no whole number"));
  EXPECT_THAT(ParseError("train_steps: \"5\""), HasSubstr("no whole number"));
  EXPECT_THAT(ParseError("train_steps: [5]"), HasSubstr("a list where a number is expected"));
  EXPECT_THAT(ParseError("dropout: nan"), HasSubstr("no finite number"));
  EXPECT_THAT(ParseError("dropout: 1e999"), HasSubstr("no finite number"));
  EXPECT_THAT(ParseError("checkpoint: {async: yes}"), HasSubstr("allowed: true, false"));
  EXPECT_THAT(ParseError("optimizer: 3"), HasSubstr("where a mapping of OptimizerConfig"));
  EXPECT_THAT(ParseError("- a"), HasSubstr("a list where a mapping of TrainConfig"));
  EXPECT_THAT(ParseError("tokenizer: {a: b}"), HasSubstr("where a string is expected"));
}

TEST(Config, HostileTextEndsInOneLine) {
  EXPECT_THAT(ParseError("seed: 1\nlog:\n  interval: 1\n  interval: 2\n"),
              HasSubstr("t.yaml:4: key \"interval\" was given before, in line 3"));
  EXPECT_THAT(ParseError("seed: [1"), HasSubstr("t.yaml:"));
  EXPECT_THAT(ParseError("seed: 1\n---\nseed: 2\n"), HasSubstr("more than one document"));
  EXPECT_THAT(ParseError("tokenizer: \"\xff\""), HasSubstr("UTF-8"));
  EXPECT_THAT(ParseError("{[1, 2]: 3}"), HasSubstr("as a key"));
  EXPECT_THAT(ParseError("a: &a [*a]"), HasSubstr("t.yaml:1"));
  EXPECT_THAT(ParseError(std::string(5000, '[')), HasSubstr("t.yaml:1"));
  EXPECT_THAT(ParseError("tokenizer: " + std::string((1 << 20) + 1, 'x')), HasSubstr("at most"));
  std::string deep;
  for (int i = 0; i < 40; ++i) deep += std::string(i, ' ') + "a:\n";
  EXPECT_THAT(ParseError(deep), HasSubstr("nested deeper than 32"));
  std::string laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 9; ++i) {
    laughs +=
        fmt::format("a{0}: &a{0} [*a{1}, *a{1}, *a{1}, *a{1}, *a{1}, *a{1}, *a{1}]\n", i, i - 1);
  }
  EXPECT_THAT(ParseError(laughs), HasSubstr("more than 65536 values"));
  std::string fat = "a: &a " + std::string(200000, 'x') + "\nb: [";
  for (int i = 0; i < 1000; ++i) fat += "*a, ";
  EXPECT_THAT(ParseError(fat + "*a]"), HasSubstr("aliases stand for over 1 MiB"));
}

TEST(Config, AliasesStandForTheirValue) {
  const config::TrainConfig c =
      Parse("data:\n  sources:\n    - &s {path: p, weight: 2}\n  validation:\n    - *s\n");
  EXPECT_EQ(c.data().validation(0).weight(), 2);
}

TEST(Config, OverridesReachAnyField) {
  const config::TrainConfig c =
      Set(Parse(kConfig),
          {"optimizer.lr=1e-5", "data.sources[0].weight=3", "data.sources[2].path=c=d: x",
           "data.sources[2].kind=chat", "model.layer_types[1]=full_attention",
           "model.eos_token_id=[1, 2]", "frozen_parameters=a.*", "model.rope_scaling={factor: 8}",
           "model.model_type=null", "checkpoint.async=false"});
  EXPECT_EQ(c.optimizer().lr(), 1e-5);
  EXPECT_EQ(c.data().sources(0).weight(), 3);
  EXPECT_EQ(c.data().sources(0).path(), "/data/a");
  EXPECT_EQ(c.data().sources(2).path(), "c=d: x");
  EXPECT_EQ(c.data().sources(2).kind(), config::SOURCE_KIND_CHAT);
  EXPECT_THAT(c.model().layer_types(), ElementsAre("full_attention", "full_attention"));
  EXPECT_THAT(c.model().eos_token_id(), ElementsAre(1, 2));
  EXPECT_THAT(c.frozen_parameters(), ElementsAre("a.*"));
  EXPECT_EQ(c.model().rope_scaling().rope_type(), "yarn");
  EXPECT_EQ(c.model().rope_scaling().factor(), 8);
  EXPECT_FALSE(c.model().has_model_type());
  EXPECT_FALSE(c.checkpoint().async());
}

TEST(Config, OverrideErrorsNameTheOverride) {
  EXPECT_EQ(SetError("optimizer.lrr=1"),
            "--set optimizer.lrr=1: optimizer.lrr: unknown field; did you mean lr?");
  EXPECT_THAT(SetError("optimizer"), HasSubstr("path=value"));
  EXPECT_THAT(SetError("=1"), HasSubstr("empty name"));
  EXPECT_THAT(SetError("a..b=1"), HasSubstr("empty name"));
  EXPECT_THAT(SetError("data.sources[2].path=x"),
              HasSubstr("index 2 is out of range; allowed: 0 to 1"));
  EXPECT_THAT(SetError("data.sources[-1].path=x"), HasSubstr("name[0]"));
  EXPECT_THAT(SetError("data.sources[=x"), HasSubstr("name[0]"));
  EXPECT_THAT(SetError("parallel.pipeline_split=1,3"), HasSubstr("a list is written [1,3]"));
  EXPECT_THAT(SetError("data.sources.path=x"), HasSubstr("is a list"));
  EXPECT_THAT(SetError("seed[0]=1"), HasSubstr("is no list"));
  EXPECT_THAT(SetError("seed.x=1"), HasSubstr("no fields of its own"));
  EXPECT_THAT(SetError("seed=x"), HasSubstr("--set seed=x: seed: \"x\" is no whole number"));
  EXPECT_THAT(SetError("seed=[1"), HasSubstr("--set seed=[1"));
}

TEST(Config, MapsTakeNamesAsKeys) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "protobuf's headers lay map fields out otherwise under ThreadSanitizer than its "
                  "uninstrumented library does";
#endif
  google::protobuf::Struct message;
  ASSERT_TRUE(
      ParseYaml("fields: {a: {number_value: 1}, b.c: {string_value: null}}", "m", &message).ok());
  const std::vector<std::string> overrides = {"fields.a.number_value=2",
                                              "fields.d.bool_value=true"};
  ASSERT_TRUE(ApplyOverrides(overrides, &message).ok());
  EXPECT_EQ(message.fields().at("a").number_value(), 2);
  EXPECT_TRUE(message.fields().at("d").bool_value());
  EXPECT_EQ(message.fields_size(), 3);
  google::protobuf::Struct again;
  ASSERT_TRUE(ParseYaml(DumpYaml(message), "m", &again).ok()) << DumpYaml(message);
  EXPECT_EQ(DumpYaml(message), DumpYaml(again));
  EXPECT_EQ(again.fields().at("a").number_value(), 2);
}

TEST(Config, DumpShowsDefaultsAndRoundTrips) {
  config::TrainConfig c = Parse(kConfig);
  c.set_tokenizer("a \"b\"\n\x01\\ \xc3\xa9 true");
  c.set_init_from("null");
  c.mutable_optimizer()->set_lr(0.1 + 0.2);
  const std::string text = DumpYaml(c);
  EXPECT_THAT(text, HasSubstr("  beta2: 0.95\n"));
  EXPECT_THAT(text, HasSubstr("  lr: 0.30000000000000004\n"));
  EXPECT_THAT(text, Not(HasSubstr("head_dim")));
  config::TrainConfig again = Parse(text);
  EXPECT_EQ(DumpYaml(again), text);
  EXPECT_EQ(again.tokenizer(), c.tokenizer());
  EXPECT_EQ(again.init_from(), "null");
  EXPECT_EQ(again.model().SerializeAsString(), c.model().SerializeAsString());
  EXPECT_EQ(again.data().sources(1).path(), "b: #");
}

TEST(Config, DumpOfNothingSetLeavesThePresenceOfPartsWithoutDefaults) {
  const config::TrainConfig again = Parse(DumpYaml(config::TrainConfig()));
  EXPECT_FALSE(again.has_model());
  EXPECT_FALSE(again.has_init_from());
  EXPECT_EQ(again.global_batch_size(), 16);
}

TEST(Config, LoadsAFileAndNamesAMissingOne) {
  const std::string path = testing::TempDir() + "/config_test.yaml";
  std::ofstream(path) << "seed: 3\n";
  const std::vector<std::string> overrides = {"seed=4"};
  config::TrainConfig c;
  ASSERT_TRUE(LoadYaml(path, overrides, &c).ok());
  EXPECT_EQ(c.seed(), 4);
  const absl::Status missing = LoadYaml(path + ".not", overrides, &c);
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(missing), HasSubstr(path + ".not"));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace cadre
