#include "serving/scheduler.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"

namespace cadre {
namespace {

class SchedulerTest : public ::testing::Test {
 protected:
  static constexpr int64_t kBlockSize = 16;

  void Make(int64_t blocks, SchedulerOptions options, bool prefix_caching = true) {
    ops::KvLayout layout{.dtype = DType::kF32,
                         .kv_heads = 1,
                         .key_dim = 8,
                         .value_dim = 8,
                         .block_size = kBlockSize};
    scheduler_.reset();
    cache_ = std::make_unique<KvCache>(allocator_, std::vector{layout}, blocks,
                                       KvCacheOptions{.prefix_caching = prefix_caching});
    scheduler_ = std::make_unique<Scheduler>(options, *cache_);
  }

  void Add(uint64_t id, int64_t prompt, int max_tokens = 16) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request.id = id;
    sequence->request.sampling.max_tokens = max_tokens;
    sequence->request.prompt =
        std::make_shared<std::vector<int32_t>>(prompt, static_cast<int32_t>(id));
    sequence->tokens = *sequence->request.prompt;
    scheduler_->Add(std::move(sequence));
  }

  // Runs a step as the engine does; returns (id, tokens) of its chunks.
  std::vector<std::pair<uint64_t, int64_t>> Step() {
    std::vector<std::pair<uint64_t, int64_t>> ran;
    for (const ScheduledChunk& chunk : scheduler_->Plan(1.0)) {
      const bool samples = chunk.samples();
      ran.emplace_back(chunk.sequence->request.id, chunk.tokens);
      const auto end = static_cast<size_t>(chunk.end());
      EXPECT_GE(chunk.sequence->kv.blocks().size() * kBlockSize, end);
      cache_->Commit(chunk.sequence->kv, std::span(chunk.sequence->tokens).first(end));
      if (samples) chunk.sequence->tokens.push_back(1);
    }
    return ran;
  }

  using Ran = std::vector<std::pair<uint64_t, int64_t>>;
  HostAllocator allocator_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, PromptsAreReadInChunksWhileOthersDecode) {
  Make(64, {.max_num_seqs = 4, .max_num_batched_tokens = 10, .max_context = 100});
  Add(1, 4);
  Add(2, 20);
  EXPECT_EQ(Step(), (Ran{{1, 4}, {2, 6}}));
  EXPECT_EQ(Step(), (Ran{{1, 1}, {2, 9}}));
  EXPECT_EQ(Step(), (Ran{{1, 1}, {2, 5}}));
  EXPECT_EQ(Step(), (Ran{{1, 1}, {2, 1}}));
}

TEST_F(SchedulerTest, AdmissionIsFirstComeWithinItsPlaces) {
  Make(64, {.max_num_seqs = 1, .max_num_batched_tokens = 100, .max_context = 100});
  Add(1, 4);
  Add(2, 4);
  EXPECT_EQ(Step(), (Ran{{1, 4}}));
  EXPECT_EQ(scheduler_->waiting(), 1);
  scheduler_->Remove(1);
  EXPECT_EQ(Step(), (Ran{{2, 4}}));
}

TEST_F(SchedulerTest, TheYoungestGivesWayAndComesBack) {
  for (bool caching : {false, true}) {
    Make(3, {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 48}, caching);
    Add(1, 16);
    Add(2, 15);
    EXPECT_EQ(Step(), (Ran{{1, 16}, {2, 15}}));
    EXPECT_EQ(Step(),
              (Ran{{1, 1}, {2, 1}}));  // all three blocks are in use, and 2's only one is full
    EXPECT_EQ(Step(), (Ran{{1, 1}}));
    EXPECT_EQ(scheduler_->preemptions(), 1);
    EXPECT_EQ(scheduler_->waiting(), 1);
    scheduler_->Remove(1);
    // It finds its own full block again, or computes what it had generated once more.
    EXPECT_EQ(Step(), (Ran{{2, caching ? 1 : 17}}));
    EXPECT_EQ(scheduler_->prefix_hits(), 0) << "what it had computed itself is no hit";
  }
}

TEST_F(SchedulerTest, ChoicesWaitForTheirPromptAndShareIt) {
  Make(8, {.max_num_seqs = 4, .max_num_batched_tokens = 16, .max_context = 100});
  auto prompt = std::make_shared<std::vector<int32_t>>(20, 5);
  for (uint64_t id : {1, 2, 3}) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = {.id = id, .prompt = prompt};
    sequence->tokens = *prompt;
    if (id == 3) sequence->request.cache_salt = "other";
    scheduler_->Add(std::move(sequence));
  }
  EXPECT_EQ(Step(), (Ran{{1, 16}}));
  EXPECT_EQ(Step(), (Ran{{1, 4}}));
  EXPECT_EQ(Step(), (Ran{{1, 1}, {2, 1}, {3, 14}})) << "another tenant's prompt is its own";
  EXPECT_EQ(cache_->blocks() - cache_->free_blocks(), 3 + 1);
  EXPECT_EQ(scheduler_->prefix_queries(), 60);
  EXPECT_EQ(scheduler_->prefix_hits(), 19);
}

TEST_F(SchedulerTest, PromptsThatAreScoredAreComputed) {
  Make(8, {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 100});
  Add(1, 40);
  Step();
  for (int prompt_logprobs : {-1, 0}) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = {.id = 2, .prompt = std::make_shared<std::vector<int32_t>>(40, 1)};
    sequence->request.sampling.prompt_logprobs = prompt_logprobs;
    sequence->tokens = *sequence->request.prompt;
    scheduler_->Add(std::move(sequence));
    EXPECT_EQ(Step(), (Ran{{1, 1}, {2, prompt_logprobs < 0 ? 8 : 40}}));
    scheduler_->Remove(2);
  }
}

TEST_F(SchedulerTest, RemovingFreesBlocks) {
  Make(4, {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 48});
  Add(1, 30);
  Step();
  EXPECT_EQ(cache_->free_blocks(), 2);
  EXPECT_NE(scheduler_->Remove(1), nullptr);
  EXPECT_EQ(cache_->free_blocks(), 4);
  EXPECT_EQ(scheduler_->Remove(1), nullptr);
}

TEST_F(SchedulerTest, APromptThatFillsEveryBlockIsAdmitted) {
  for (int max_tokens : {0, 1}) {
    Make(2, {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 48});
    ASSERT_TRUE(scheduler_->Admissible(32 - max_tokens, {.max_tokens = max_tokens}).ok());
    Add(1, 32 - max_tokens, max_tokens);
    EXPECT_EQ(Step(), (Ran{{1, 32 - max_tokens}}));
  }
}

TEST_F(SchedulerTest, RefusesWhatCannotFit) {
  Make(2, {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 48});
  EXPECT_TRUE(scheduler_->Admissible(16, {.max_tokens = 16}).ok());
  EXPECT_EQ(scheduler_->Admissible(16, {.max_tokens = 17}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(scheduler_->Admissible(40, {.max_tokens = 9}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(scheduler_->Admissible(0, {.max_tokens = 9}).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cadre
