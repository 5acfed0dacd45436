// What goes wrong around a checkpoint: torn and altered files, a full disk, a killed process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "core/file.h"
#include "training/checkpoint.h"
#include "training/checkpoint_test_util.h"

namespace cadre {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Search {
  int64_t step = -1;  // -1: nothing found
  std::string warnings;
};

Search SearchIn(const std::string& root) {
  Search search;
  auto found =
      FindGoodCheckpoint(root, [&](const std::string& line) { search.warnings += line + "\n"; });
  CADRE_CHECK(found.ok(), "{}", Message(found.status()));
  if (found->has_value()) search.step = (*found)->manifest.state.step;
  return search;
}

void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

class CheckpointFault : public testing::Test {
 protected:
  void SetUp() override {
    root_ = FreshFolder("fault");
    for (int i = 0; i < 2; ++i) {
      run_.Step();
      ASSERT_TRUE(run_.Save(root_).ok());
    }
    newest_ = root_ + "/step-000002";
    ASSERT_EQ(SearchIn(root_).step, 2);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::vector<std::string> FilesOfNewest() {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(newest_)) {
      if (entry.is_regular_file()) files.push_back(entry.path().string());
    }
    return files;
  }

  TestRun run_{DType::kBF16};
  std::string root_, newest_;
};

TEST_F(CheckpointFault, AFlippedByteAnywhereIsFoundAndTheOneBeforeIsTaken) {
  std::vector<std::string> files = FilesOfNewest();
  ASSERT_EQ(files.size(), 6u);
  for (const std::string& path : files) {
    std::string good = *ReadFile(path);
    for (uint64_t trial = 0; trial < 24; ++trial) {
      std::string bad = good;
      RandomKey key(trial, path);
      bad[key.U64(0) % bad.size()] ^= static_cast<char>(1 << (key.U64(1) % 8));
      WriteBytes(path, bad);
      Search search = SearchIn(root_);
      ASSERT_EQ(search.step, 1) << path;
      ASSERT_THAT(search.warnings, HasSubstr(path));
    }
    WriteBytes(path, good);
    ASSERT_EQ(SearchIn(root_).step, 2);
  }
}

TEST_F(CheckpointFault, ATornOrMissingFileIsFound) {
  for (const std::string& path : FilesOfNewest()) {
    std::string good = *ReadFile(path);
    for (size_t length : {size_t{0}, good.size() / 3, good.size() - 2}) {
      WriteBytes(path, good.substr(0, length));
      ASSERT_EQ(SearchIn(root_).step, 1) << path << " " << length;
    }
    std::filesystem::remove(path);
    Search search = SearchIn(root_);
    ASSERT_EQ(search.step, 1) << path;
    ASSERT_THAT(search.warnings, HasSubstr(path));
    WriteBytes(path, good);
  }
}

TEST_F(CheckpointFault, HostileManifestsAreRefused) {
  std::string path = newest_ + "/manifest.json";
  std::string deep(1 << 20, '[');
  for (const std::string& text :
       {std::string("[]"), std::string("{}"), std::string("null"), deep,
        std::string(R"({"format": "cadre-checkpoint", "format_version": 2})"),
        std::string(R"({"format": "other", "format_version": 2})")}) {
    WriteBytes(path, text);
    EXPECT_EQ(ReadManifest(newest_).status().code(), absl::StatusCode::kDataLoss)
        << text.substr(0, 80);
  }
  for (int version : {1, 3}) {
    WriteBytes(path,
               fmt::format(R"({{"format": "cadre-checkpoint", "format_version": {}}})", version));
    absl::Status status = ReadManifest(newest_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_EQ(Message(status),
              fmt::format("{}: format_version {}; this program reads 2 alone", path, version));
  }
}

TEST_F(CheckpointFault, LeftoversOfAKilledSaveAreNoCheckpoints) {
  std::filesystem::rename(newest_, root_ + "/.writing-step-000002");
  EXPECT_EQ(SearchIn(root_).step, 1);
  // Saves of one step, of two processes even, have nothing in common.
  auto folder = StartCheckpoint(root_, 2), other = StartCheckpoint(root_, 2);
  ASSERT_TRUE(folder.ok() && other.ok());
  EXPECT_NE(*folder, *other);
  EXPECT_TRUE(std::filesystem::is_empty(*folder));
  ASSERT_TRUE(AbandonLaterCheckpoints(root_, 1).ok());
  EXPECT_FALSE(std::filesystem::exists(*folder));
  EXPECT_FALSE(std::filesystem::exists(*other));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/.writing-step-000002"));
}

TEST_F(CheckpointFault, ContinuingFromAnEarlierStepSetsLaterOnesAside) {
  run_.Step();
  ASSERT_TRUE(run_.Save(root_).ok());
  auto names = AbandonLaterCheckpoints(root_, 1);
  ASSERT_TRUE(names.ok());
  EXPECT_EQ(names->size(), 2u);
  EXPECT_EQ(SearchIn(root_).step, 1);
  EXPECT_EQ(std::filesystem::read_symlink(root_ + "/latest"), "step-000001");
  EXPECT_THAT(NamesIn(root_), ElementsAre("latest", "step-000001", "step-000002.abandoned",
                                          "step-000003.abandoned"));
  // Pruning counts neither those nor checkpoints of later steps.
  ASSERT_TRUE(PruneCheckpoints(root_, 1, 1).ok());
  EXPECT_EQ(SearchIn(root_).step, 1);
}

TEST_F(CheckpointFault, WhatWasSetAsideStays) {
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(run_.Save(root_).ok());
    ASSERT_TRUE(AbandonLaterCheckpoints(root_, 1).ok());
  }
  EXPECT_THAT(NamesIn(root_), ElementsAre("latest", "step-000001", "step-000002.abandoned",
                                          "step-000002.abandoned-2", "step-000002.abandoned-3"));
}

TEST_F(CheckpointFault, AFullDiskFailsTheSaveAndKeepsTheRun) {
  std::string small = FreshFolder("full_disk");
  std::filesystem::create_directory(small);
  if (mount("tmpfs", small.c_str(), "tmpfs", 0, "size=128k") != 0) {
    std::filesystem::remove_all(small);
    GTEST_SKIP() << "mounting a small tmpfs needs root";
  }
  CheckpointSaver saver(run_.SaverOptions(small, /*async=*/true), run_.store, *run_.optimizer,
                        run_.allocator);
  saver.Save(run_.ctx, run_.State());
  absl::Status first = saver.Wait();
  absl::Status status;
  int saved = 1;
  for (; saved < 64 && status.ok(); ++saved) {
    run_.Step();
    saver.Save(run_.ctx, run_.State());
    status = saver.Wait();
  }
  int64_t failed_step = run_.step;
  Search search = SearchIn(small);
  std::vector<std::string> names = NamesIn(small);
  // With room again the next save succeeds.
  std::filesystem::remove_all(small + "/step-000002");
  std::filesystem::remove_all(small + "/step-000003");
  run_.Step();
  saver.Save(run_.ctx, run_.State());
  absl::Status again = saver.Wait();
  umount(small.c_str());
  std::filesystem::remove_all(small);
  EXPECT_TRUE(first.ok()) << Message(first);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << Message(status);
  EXPECT_THAT(Message(status), HasSubstr("No space left on device"));
  EXPECT_EQ(search.step, failed_step - 1);
  EXPECT_EQ(search.warnings, "");
  for (const std::string& name : names) EXPECT_FALSE(name.starts_with(".")) << name;
  EXPECT_TRUE(again.ok()) << Message(again);
}

// The child saves without end; it is killed at some moment of its n-th save.
TEST(CheckpointKill, AKilledProcessLeavesOnlyWholeCheckpoints) {
  for (int trial = 1; trial <= 8; ++trial) {
    std::string root = FreshFolder("kill");
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      TestRun run(DType::kBF16);
      CheckpointSaverOptions options = run.SaverOptions(root);
      options.keep_last = 2;
      CheckpointSaver saver(options, run.store, *run.optimizer, run.allocator);
      while (true) {
        run.Step();
        saver.Save(run.ctx, run.State());
        if (!saver.Poll().ok() || write(pipe_ends[1], "s", 1) != 1) _exit(1);
      }
    }
    char byte;
    for (int i = 0; i < trial; ++i) ASSERT_EQ(read(pipe_ends[0], &byte, 1), 1);
    kill(child, SIGKILL);
    int state = 0;
    waitpid(child, &state, 0);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    ASSERT_TRUE(WIFSIGNALED(state));
    Search search = SearchIn(root);
    EXPECT_GE(search.step, trial);
    EXPECT_EQ(search.warnings, "");
    // A new process goes on from there, to the bits of an undisturbed run.
    TestRun resumed(DType::kBF16), whole(DType::kBF16);
    auto found = FindGoodCheckpoint(root, [](const std::string&) {});
    ASSERT_TRUE(resumed.Load(**found).ok());
    while (whole.step < resumed.step + 2) whole.Step();
    for (int i = 0; i < 2; ++i) resumed.Step();
    EXPECT_EQ(resumed.Bytes(), whole.Bytes());
    std::filesystem::remove_all(root);
  }
}

}  // namespace
}  // namespace cadre
