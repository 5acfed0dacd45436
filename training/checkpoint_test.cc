#include "training/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "training/checkpoint_test_util.h"

namespace cadre {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

void Ignore(const std::string&) {}

FoundCheckpoint Find(const std::string& root) {
  auto found = FindGoodCheckpoint(root, Ignore);
  CADRE_CHECK(found.ok() && found->has_value(), "no checkpoint in {}", root);
  return **found;
}

TEST(Checkpoint, AResumedRunHasTheSameBits) {
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
    std::string root = FreshFolder("resume");
    TestRun whole(dtype);
    for (int i = 0; i < 3; ++i) whole.Step();
    ASSERT_TRUE(whole.Save(root).ok());
    TestRun resumed(dtype);
    for (std::byte& byte : std::span(resumed.Weight(2).raw(), resumed.Weight(2).bytes())) {
      byte = std::byte{0};  // a frozen weight comes from the weights' own file
    }
    FoundCheckpoint found = Find(root);
    ASSERT_TRUE(resumed.Load(found).ok());
    EXPECT_EQ(resumed.Bytes(), whole.Bytes()) << Name(dtype);
    for (int i = 0; i < 4; ++i) {
      whole.Step();
      resumed.Step();
    }
    EXPECT_EQ(resumed.Bytes(), whole.Bytes()) << Name(dtype);
    std::filesystem::remove_all(root);
  }
}

TEST(Checkpoint, TheManifestKeepsTheState) {
  std::string root = FreshFolder("manifest");
  TestRun run(DType::kBF16);
  for (int i = 0; i < 5; ++i) run.Step();
  ASSERT_TRUE(run.Save(root).ok());
  FoundCheckpoint found = Find(root);
  const CheckpointState& state = found.manifest.state;
  EXPECT_EQ(found.path, root + "/step-000005");
  EXPECT_EQ(state.step, 5);
  EXPECT_EQ(state.updates, 5);
  EXPECT_EQ(state.weight_version, run.store.version());
  EXPECT_EQ(state.seed, 7u);
  EXPECT_EQ(state.data_seed, 8u);
  EXPECT_EQ(state.tokens, 320);
  EXPECT_THAT(state.guard.norms, ElementsAre(1.5, 0.1));
  EXPECT_EQ(state.guard.skipped_in_row, 2);
  EXPECT_EQ(state.config, "train_steps: 10\n");
  std::vector<std::string> files;
  for (const auto& [name, file] : found.manifest.files) files.push_back(name);
  EXPECT_THAT(files, ElementsAre("model.safetensors", "optimizer/exp_avg.safetensors",
                                 "optimizer/exp_avg_sq.safetensors", "optimizer/master.safetensors",
                                 "train_config.yaml"));
  EXPECT_EQ(std::filesystem::read_symlink(root + "/latest"), "step-000005");
  std::filesystem::remove_all(root);
}

TEST(Checkpoint, AnAsynchronousSaveHoldsTheStateOfItsMoment) {
  std::string root = FreshFolder("async");
  TestRun run(DType::kBF16);
  run.Step();
  std::vector<std::byte> before = run.Bytes();
  std::promise<void> gate;
  std::shared_future<void> opened = gate.get_future().share();
  CheckpointSaverOptions options = run.SaverOptions(root, /*async=*/true);
  auto save = options.save_weights;
  options.save_weights = [save, opened](const std::string& folder,
                                        std::span<const ParamPiece> weights, Communicator* group) {
    opened.wait();
    return save(folder, weights, group);
  };
  CheckpointSaver saver(options, run.store, *run.optimizer, run.allocator);
  saver.Save(run.ctx, run.State());
  for (int i = 0; i < 3; ++i) run.Step();  // goes on while the save waits
  EXPECT_TRUE(saver.Poll().ok());
  EXPECT_EQ(saver.saved_step(), -1);
  gate.set_value();
  ASSERT_TRUE(saver.Wait().ok());
  EXPECT_EQ(saver.saved_step(), 1);
  TestRun loaded(DType::kBF16);
  ASSERT_TRUE(loaded.Load(Find(root)).ok());
  EXPECT_EQ(loaded.Bytes(), before);
  EXPECT_NE(loaded.Bytes(), run.Bytes());
  std::filesystem::remove_all(root);
}

TEST(Checkpoint, ASecondSaveWaitsForTheFirst) {
  std::string root = FreshFolder("pressure");
  TestRun run(DType::kF32);
  CheckpointSaverOptions options = run.SaverOptions(root, /*async=*/true);
  std::atomic<int> inside = 0, most = 0;
  auto save = options.save_weights;
  options.save_weights = [&, save](const std::string& folder, std::span<const ParamPiece> weights,
                                   Communicator* group) {
    most = std::max(most.load(), ++inside);
    absl::Status status = save(folder, weights, group);
    --inside;
    return status;
  };
  CheckpointSaver saver(options, run.store, *run.optimizer, run.allocator);
  for (int i = 0; i < 8; ++i) {
    run.Step();
    saver.Save(run.ctx, run.State());
  }
  ASSERT_TRUE(saver.Wait().ok());
  EXPECT_EQ(most, 1);
  EXPECT_EQ(ListCheckpoints(root)->size(), 8u);
  TestRun loaded(DType::kF32);
  ASSERT_TRUE(loaded.Load(Find(root)).ok());
  EXPECT_EQ(loaded.Bytes(), run.Bytes());
  std::filesystem::remove_all(root);
}

TEST(Checkpoint, AFailedSaveIsReportedOnceAndHarmsNothing) {
  std::string root = FreshFolder("failed");
  TestRun run(DType::kBF16);
  CheckpointSaverOptions options = run.SaverOptions(root, /*async=*/true);
  bool fail = false;
  auto save = options.save_weights;
  options.save_weights = [&, save](const std::string& folder, std::span<const ParamPiece> weights,
                                   Communicator* group) {
    CADRE_RETURN_IF_ERROR(save(folder, weights, group));
    return fail ? ResourceExhausted("{}: cannot write: No space left on device", folder)
                : absl::OkStatus();
  };
  CheckpointSaver saver(options, run.store, *run.optimizer, run.allocator);
  run.Step();
  saver.Save(run.ctx, run.State());
  ASSERT_TRUE(saver.Wait().ok());
  fail = true;
  run.Step();
  saver.Save(run.ctx, run.State());
  absl::Status status = saver.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("checkpoint of step 2 not saved"));
  EXPECT_TRUE(saver.Poll().ok());
  EXPECT_THAT(NamesIn(root), ElementsAre("latest", "step-000001"));
  EXPECT_EQ(Find(root).manifest.state.step, 1);
  fail = false;
  run.Step();
  saver.Save(run.ctx, run.State());
  ASSERT_TRUE(saver.Wait().ok());
  EXPECT_EQ(Find(root).manifest.state.step, 3);
  std::filesystem::remove_all(root);
}

TEST(Checkpoint, KeepsTheNewest) {
  std::string root = FreshFolder("keep");
  TestRun run(DType::kBF16);
  CheckpointSaverOptions options = run.SaverOptions(root);
  options.keep_last = 2;
  CheckpointSaver saver(options, run.store, *run.optimizer, run.allocator);
  for (int i = 0; i < 5; ++i) {
    run.Step();
    saver.Save(run.ctx, run.State());
    ASSERT_TRUE(saver.Poll().ok());
  }
  EXPECT_THAT(NamesIn(root), ElementsAre("latest", "step-000004", "step-000005"));
  // The same step again takes the place of the one before.
  saver.Save(run.ctx, run.State());
  ASSERT_TRUE(saver.Poll().ok());
  EXPECT_THAT(NamesIn(root), ElementsAre("latest", "step-000004", "step-000005"));
  EXPECT_EQ(Find(root).manifest.state.step, 5);
  std::filesystem::remove_all(root);
}

TEST(Checkpoint, SnapshotBytesAreWhatIsAllocated) {
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
    // Shapes that need neither padding in the bucket nor rounding in the allocator.
    TestRun run(dtype, {{.name = "a", .shape = {64, 32}},
                        {.name = "b", .shape = {4096}, .layer = 0},
                        {.name = "c", .shape = {64}, .trainable = false},
                        {.name = "d", .shape = {64}, .layer = 1, .fp32 = true}});
    size_t live = run.allocator.usage().live_bytes;
    CheckpointSaver saver(run.SaverOptions("/nowhere", /*async=*/true), run.store, *run.optimizer,
                          run.allocator);
    EXPECT_EQ(static_cast<int64_t>(run.allocator.usage().live_bytes - live),
              SnapshotBytes(run.config, run.store))
        << Name(dtype);
  }
}

TEST(Checkpoint, LoadsAcrossComputeTypes) {
  std::string root = FreshFolder("dtypes");
  TestRun narrow(DType::kBF16), wide(DType::kF32);
  narrow.Step();
  ASSERT_TRUE(narrow.Save(root).ok());
  ASSERT_TRUE(LoadCheckpoint(
                  Find(root), wide.model_config,
                  [](const std::string&) { return absl::OkStatus(); }, wide.store, *wide.optimizer)
                  .ok());
  OptimizerSlot master = narrow.optimizer->Slots()[0];
  Tensor precise = narrow.store.View(master.buckets[narrow.store.bucket_of(1)], 1);
  for (int64_t i = 0; i < precise.numel(); ++i) {
    ASSERT_EQ(wide.Weight(1).data<float>()[i], precise.data<float>()[i]);
  }
  std::filesystem::remove_all(root);
}

TEST(Checkpoint, RefusesWhatDoesNotFit) {
  std::string root = FreshFolder("refuse");
  TestRun run(DType::kBF16);
  run.Step();
  ASSERT_TRUE(run.Save(root).ok());
  FoundCheckpoint found = Find(root);

  TestRun other(DType::kBF16);
  other.model_config = "model_type: llama\nhidden_size: 16\n";
  EXPECT_THAT(Message(other.Load(found)), HasSubstr("hidden_size is 8 there, 16 here"));

  std::vector<ParamSpec> specs = RunSpecs();
  specs[1].shape = {13, 21};
  TestRun shape(DType::kBF16, specs);
  EXPECT_THAT(Message(shape.Load(found)), HasSubstr("tensor l0.w has shape [21, 13]"));

  specs = RunSpecs();
  specs[1].name = "l0.v";
  TestRun missing(DType::kBF16, specs);
  EXPECT_THAT(Message(missing.Load(found)), HasSubstr("tensor l0.v is missing"));

  specs = RunSpecs();
  specs[4].trainable = false;
  TestRun frozen(DType::kBF16, specs);
  EXPECT_THAT(Message(frozen.Load(found)), HasSubstr("tensor l1.w belongs to no parameter"));
  std::filesystem::remove_all(root);
}

}  // namespace
}  // namespace cadre
