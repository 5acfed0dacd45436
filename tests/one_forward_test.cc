// One forward: the logprobs that the server returns are, bit for bit, those that the training
// forward computes on the finished sequence for the same weights, whatever else is in the batch and
// however the work was cut.
#include "tests/one_forward_run.h"

namespace cadre::one_forward {
namespace {

const Case kCases[] = {
    {.max_num_seqs = 1},
    {.max_num_seqs = 1, .max_num_batched_tokens = 1, .workers = 3},
    {.max_num_seqs = 1, .max_num_batched_tokens = 7, .block_size = 32, .threads = 2},
    {.workers = 1},
    {.workers = 2, .threads = 2},
    {.max_num_batched_tokens = 16, .workers = 4},
    {.max_num_batched_tokens = 17, .block_size = 48, .workers = 5, .threads = 2},
    {.max_num_batched_tokens = 64, .block_size = 64, .workers = 6},
    {.max_num_batched_tokens = 129, .block_size = 16, .workers = 7, .threads = 2},
    {.max_num_batched_tokens = 300, .block_size = 128, .workers = 8},
    {.max_num_batched_tokens = 40, .workers = 8, .threads = 2, .kv_tokens = 288},
    {.max_num_batched_tokens = 512, .block_size = 32, .kv_tokens = 320},
};

constexpr ops::KvQuantization kQuantized[] = {ops::KvQuantization::kInt8,
                                              ops::KvQuantization::kInt4};

Case With(Case c, ops::KvQuantization kv) {
  c.kv = kv;
  return c;
}

// The prompts dealt out over the cases, each in one of them; of those with enough memory for all,
// one of `every`.
void CompareSample(Trained& trained, ops::KvQuantization kv, int every) {
  int compared = 0;
  constexpr int kCaseCount = static_cast<int>(std::size(kCases));
  for (int c = 0; c < kCaseCount; ++c) {
    std::vector<int> prompts;
    const int step = kCaseCount * (kCases[c].kv_tokens > 0 ? 1 : every);
    for (int i = c; i < kPrompts; i += step) prompts.push_back(i);
    compared += Compare(trained, With(kCases[c], kv), prompts, true);
  }
  EXPECT_GT(compared, 10 * kPrompts / every);
}

// The same contract with quantized weights, at decode's few rows and at prefill's many.
void CompareQuantized(const std::string& type) {
  Trained trained(type);
  const std::vector<int> prompts = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15};
  const std::vector<int32_t> ids = *Request(3).prompt;
  const std::vector<float> plain = trained.Score(ids, ops::KvQuantization::kNone);
  for (WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    trained.Quantize(format);
    EXPECT_NE(trained.Score(ids, ops::KvQuantization::kNone), plain);
    for (size_t c : {0, 1, 3, 6, 8}) Compare(trained, kCases[c], prompts, true);
  }
}

// Every prompt in every case; the sampled tokens are the same, too.
void CompareAll(Trained& trained, ops::KvQuantization kv) {
  std::vector<int> prompts(kPrompts);
  for (int i = 0; i < kPrompts; ++i) prompts[static_cast<size_t>(i)] = i;
  for (const Case& c : kCases) Compare(trained, With(c, kv), prompts, &c == kCases);
  const Requests requests = RequestsOf(prompts);
  const std::span wave(&requests, 1);
  const auto first = Serve(trained.serving(), With(kCases[0], kv), wave);
  const auto last = Serve(trained.serving(), With(kCases[std::size(kCases) - 1], kv), wave);
  for (const auto& [id, answer] : first) EXPECT_EQ(answer.ids, last.at(id).ids) << id;
}

TEST(OneForward, Llama) {
  Trained trained("llama");
  CompareSample(trained, ops::KvQuantization::kNone, 1);
}
TEST(OneForward, Qwen3Moe) {
  Trained trained("qwen3_moe");
  CompareSample(trained, ops::KvQuantization::kNone, 1);
}
TEST(OneForward, QuantizedLlama) { CompareQuantized("llama"); }
TEST(OneForward, QuantizedQwen3Moe) { CompareQuantized("qwen3_moe"); }

const Case kPrefixCases[] = {
    {.max_num_seqs = 1, .max_num_batched_tokens = 7},
    {.max_num_batched_tokens = 16, .workers = 4, .threads = 2},
    {.max_num_batched_tokens = 61, .block_size = 32, .workers = 2},
    {.max_num_batched_tokens = 300, .block_size = 48, .workers = 5, .threads = 2},
    {.max_num_batched_tokens = 40, .workers = 3, .threads = 2, .kv_tokens = 288},
    {.max_num_batched_tokens = 512, .block_size = 32, .kv_tokens = 320, .tiers = true},
};

// Two waves: keys that the first left behind serve the second.
void ComparePrefixHits(const std::string& type, std::span<const int> prompts) {
  Trained trained(type);
  const Requests waves[] = {RequestsOf(prompts), Relatives(prompts)};
  for (const Case& c : kPrefixCases) {
    EXPECT_GT(Compare(trained, c, waves, false), 300) << Describe(c);
  }
}

TEST(OneForward, PrefixHits) {
  const int prompts[] = {3, 4, 5, 6, 8};
  ComparePrefixHits("qwen3_moe", prompts);
}

// The same quantized forward; and it is another one than that without.
TEST(OneForward, QuantizedKeysAndValues) {
  Trained trained("qwen3_moe");
  const int prompts[] = {3, 4, 5, 6, 8};
  const Requests waves[] = {RequestsOf(prompts), Relatives(prompts)};
  for (ops::KvQuantization kv : kQuantized) {
    CompareSample(trained, kv, 4);
    for (const Case& c : {kPrefixCases[2], kPrefixCases[4]}) {
      EXPECT_GT(Compare(trained, With(c, kv), waves, false), 300) << Describe(c);
    }
    const auto answers = Serve(trained.serving(), With(kCases[0], kv), std::span(waves, 1));
    for (const auto& [id, answer] : answers) {
      int compared = 0;
      const auto plain = trained.Train(std::span(&answer.ids, 1), 1);
      EXPECT_GT(Differences(answer, plain[0], &compared), compared / 2) << id;
    }
  }
}

// Through the checkpoint's own config, whose wiring the server has to follow.
TEST(OneForward, Ladder) {
  Trained trained("ladder");
  ASSERT_EQ(trained.serving().spec().layers[1].wiring, Wiring::kLadder);
  const int prompts[] = {1, 2, 3, 4, 5, 6};
  EXPECT_GT(Compare(trained, kCases[6], prompts, true), 60);
}

TEST(OneForward, ANudgedWeightShows) {
  Trained trained("qwen3_moe");
  const int prompts[] = {1, 2, 3};
  const Requests requests = RequestsOf(prompts);
  const auto answers = Serve(trained.serving(), kCases[0], std::span(&requests, 1));
  trained.Nudge();
  for (const auto& [id, answer] : answers) {
    int compared = 0;
    const auto reference = trained.Train(std::span(&answer.ids, 1), 1);
    EXPECT_GT(Differences(answer, reference[0], &compared), compared / 2) << id;
  }
}

class FullOneForward : public testing::TestWithParam<const char*> {};
TEST_P(FullOneForward, EveryPromptInEveryCase) {
  Trained trained(GetParam());
  CompareAll(trained, ops::KvQuantization::kNone);
}
TEST_P(FullOneForward, QuantizedKeysAndValues) {
  Trained trained(GetParam());
  for (ops::KvQuantization kv : kQuantized) CompareAll(trained, kv);
}
TEST_P(FullOneForward, PrefixHits) {
  std::vector<int> prompts(24);
  std::iota(prompts.begin(), prompts.end(), 0);
  ComparePrefixHits(GetParam(), prompts);
}
INSTANTIATE_TEST_SUITE_P(FullModels, FullOneForward,
                         testing::Values("llama", "ladder", "qwen3_moe", "gpt_oss", "deepseek_v3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace cadre::one_forward
