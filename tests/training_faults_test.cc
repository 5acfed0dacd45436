// What a training run does about disks that fail or are slow, and about models that do not fit.

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <latch>
#include <mutex>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include "parallel/test_ranks.h"
#include "tests/training_run.h"
#include "training/checkpoint_folder.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;
using testing_run::OpenRun;
using testing_run::ParseTrainConfig;
using testing_run::TempFolder;
using testing_run::WriteCorpus;

constexpr char kRun[] = R"(
model: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1,
  num_attention_heads: 2, num_key_value_heads: 1, vocab_size: 64}
dtype: f32
data: {seq_len: 32}
lr_schedule: {warmup_steps: 1}
log: {tensorboard: false}
eval: {interval: 0}
global_batch_size: 4
micro_batch_size: 2
)";

// Hands on each line that is logged, to whoever logs it.
class LineSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit LineSink(std::function<void(const std::string&)> line) : line_(std::move(line)) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    line_(std::string(message.payload.data(), message.payload.size()));
  }
  void flush_() override {}
  std::function<void(const std::string&)> line_;
};

class TrainingFaults : public testing::Test {
 protected:
  TrainingFaults() {
    const absl::Status written = WriteCorpus(folder_ / "corpus", 64, 40, 2);
    CADRE_CHECK(written.ok(), "{}", Message(written));
  }

  config::TrainConfig Config(const std::string& more) const {
    config::TrainConfig config = ParseTrainConfig(kRun + more);
    config.mutable_data()->add_sources()->set_path(folder_ / "corpus");
    return config;
  }
  std::string Output() const { return folder_ / "run"; }
  std::string Checkpoints() const { return Output() + "/checkpoints"; }

  TempFolder folder_;
};

// As one process, or as two ranks.
void OnRanks(int ranks, const std::function<void(World*)>& body) {
  if (ranks == 1) return body(nullptr);
  RunRanks(ranks, [&](World& world) { body(&world); });
}

TEST_F(TrainingFaults, AStopSavesAgainWhereTheSaveOfItsStepFailed) {
  for (const int ranks : {1, 2}) {
    for (const char* async : {"true", "false"}) {
      SCOPED_TRACE(fmt::format("{} ranks, async {}", ranks, async));
      const config::TrainConfig config =
          Config(fmt::format("train_steps: 100\ncheckpoint: {{interval: 2, async: {}}}\n", async));
      std::atomic<bool> stop = false;
      std::atomic<int> failures = 0;
      OnRanks(ranks, [&](World* world) {
        const bool leader = world == nullptr || world->rank() == 0;
        spdlog::logger log("test", std::make_shared<LineSink>([&](const std::string& line) {
                             if (line.find("of step 2 not saved") == std::string::npos) return;
                             ++failures;
                             std::filesystem::remove(Checkpoints());
                           }));
        TrainerOptions options{.log = &log, .stop = &stop, .world = world};
        options.inspect_gradients = [&](int64_t step, ParameterStore&, const std::vector<Shard>&) {
          if (leader && step == 0) {
            std::filesystem::remove_all(Checkpoints());
            std::ofstream(Checkpoints()) << "no folder";
          }
          if (step == 1) stop = true;  // once this step is done and its checkpoint under way
        };
        auto trainer = OpenRun(config, Output(), 1, options);
        ASSERT_TRUE(trainer.ok()) << Message(trainer.status());
        const absl::Status status = (*trainer)->Run();
        EXPECT_TRUE(status.ok()) << Message(status);
      });
      EXPECT_EQ(failures, 1);  // said once, by the leader
      const auto found = FindGoodCheckpoint(Checkpoints(), [](const std::string&) {});
      ASSERT_TRUE(found.ok()) << Message(found.status());
      ASSERT_TRUE(found->has_value());
      EXPECT_EQ((*found)->manifest.state.step, 2);
      std::filesystem::remove_all(Output());
    }
  }
}

// Returns once a rank has waited so long for another one, in a world of its own.
void WaitOut(std::chrono::milliseconds timeout) {
  std::latch over(1);
  RunRanks(2,
           [&](World& world) {
             const auto group = world.NewGroup("both", {0, 1});
             if (world.rank() == 1) return over.wait();
             EXPECT_TRUE(absl::IsDeadlineExceeded(group->Barrier({"never"})->Wait()));
             over.count_down();
           },
           {.timeout = timeout});
}

TEST_F(TrainingFaults, ALeaderWhoseDiskIsSlowAtAResumeIsNoTimeOutForTheOthers) {
  constexpr std::chrono::milliseconds kTimeOut(1000);
  const config::TrainConfig config =
      Config("train_steps: 4\ncheckpoint: {interval: 2, async: false}\n");
  {
    auto trainer = OpenRun(config, Output(), 1);
    ASSERT_TRUE(trainer.ok()) << Message(trainer.status());
    ASSERT_TRUE((*trainer)->Run().ok());
  }
  std::filesystem::resize_file(Checkpoints() + "/step-000004/model.safetensors", 1);
  RunRanks(2,
           [&](World& world) {
             bool waited = false;
             spdlog::logger log("test", std::make_shared<LineSink>([&](const std::string& line) {
                                  if (waited || line.find("passed over") == std::string::npos)
                                    return;
                                  WaitOut(2 * kTimeOut);
                                  waited = true;
                                }));
             auto trainer = OpenRun(config, Output(), 1, {.log = &log, .world = &world});
             ASSERT_TRUE(trainer.ok()) << Message(trainer.status());
             EXPECT_EQ((*trainer)->step(), 2);
             EXPECT_EQ(waited, world.rank() == 0);
           },
           {.timeout = kTimeOut});
}

// 9e12 parameters: nothing of them may be allocated, and there is nothing to read.
TEST_F(TrainingFaults, WeightsThatDoNotFitAreRefusedBeforeTheyAreRead) {
  std::filesystem::create_directory(folder_ / "huge");
  std::ofstream(folder_ / "huge/config.json")
      << R"({"model_type": "llama", "hidden_size": 16384, "intermediate_size": 65536,
             "num_hidden_layers": 2000, "num_attention_heads": 128, "num_key_value_heads": 128,
             "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5})";
  config::TrainConfig config = Config("train_steps: 1\n");
  config.clear_model();
  for (const bool weights : {true, false}) {
    config.clear_init_from();
    config.clear_model_path();
    (weights ? config.mutable_init_from() : config.mutable_model_path())->assign(folder_ / "huge");
    const auto trainer = OpenRun(config, Output(), 1);
    EXPECT_EQ(trainer.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(trainer.status()), HasSubstr("this machine has"));
  }
}

}  // namespace
}  // namespace cadre
