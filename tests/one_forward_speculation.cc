// Guessing changes no bit: with and without it the server's tokens and logprobs are the training
// forward's.
#include "tests/one_forward_run.h"

namespace cadre::one_forward {
namespace {

// Serves the prompts with and without guesses; what share of the guesses was right.
double Speculate(Trained& trained, const Case& c, std::span<const int> prompts) {
  EngineStats stats;
  const Requests waves[] = {RequestsOf(prompts), Relatives(prompts.first(4))};
  const auto with = Serve(trained.serving(), c, waves, &stats);
  Case plain = c;
  plain.speculation = {};
  const auto without = Serve(trained.serving(), plain, waves);
  for (const auto& [id, answer] : without) {
    EXPECT_EQ(answer.ids, with.at(id).ids) << Describe(c);
    int compared = 0;
    EXPECT_EQ(Differences(with.at(id), trained.Score(answer.ids, c.kv), &compared), 0)
        << Describe(c);
  }
  EXPECT_GT(stats.spec_decode_draft_tokens, 0) << Describe(c);
  EXPECT_LE(stats.spec_decode_accepted_tokens, stats.spec_decode_draft_tokens);
  return static_cast<double>(stats.spec_decode_accepted_tokens) /
         static_cast<double>(stats.spec_decode_draft_tokens);
}

TEST(OneForward, Speculation) {
  for (const char* type : {"llama", "qwen3_moe"}) {
    Trained trained(type);
    std::vector<int> prompts;
    for (int i = 0; i < 24; ++i) prompts.push_back(i);
    Case c{.max_num_seqs = 6, .max_num_batched_tokens = 64, .threads = 2};
    // Ends of one token occur again and again, and mislead.
    c.speculation = {.method = SpeculationMethod::kNgram, .ngram = {.longest = 3, .shortest = 1}};
    EXPECT_LT(Speculate(trained, c, prompts), 1) << type;
    c.speculation = {.method = SpeculationMethod::kSelf, .layers = 1};
    const double early = Speculate(trained, c, prompts);
    c.speculation.layers = 3;
    EXPECT_EQ(Speculate(trained, c, prompts), 1) << type;
    EXPECT_LT(early, 1) << type;
    const auto draft = ModelHome::Of(trained.training());
    c.speculation = {.method = SpeculationMethod::kDraftModel, .draft = draft.get()};
    EXPECT_EQ(Speculate(trained, c, prompts), 1) << type;
    // Blocks run out, steps are too small for all guesses, and drafting lags behind long prompts.
    c.max_num_batched_tokens = 20;
    c.kv_tokens = 240;
    c.speculation.num_speculative_tokens = 7;
    EXPECT_EQ(Speculate(trained, c, prompts), 1) << type;
  }
}

struct Drawn {
  int32_t first = -1, second = -1;
  std::vector<TokenLogprob> top;  // of the second token
};

class Draws : public EventSink {
 public:
  explicit Draws(size_t requests) : drawn_(requests), left_(requests) {}
  void OnStep(std::vector<TokenEvent> events) override {
    std::lock_guard lock(mutex_);
    for (TokenEvent& event : events) {
      Drawn& drawn = drawn_[event.request_id];
      if (drawn.first < 0) {
        drawn.first = event.token;
      } else if (drawn.second < 0) {
        drawn.second = event.token;
        drawn.top = std::move(event.top);
      }
      if (event.finish != FinishReason::kNone) --left_;
    }
    done_.notify_one();
  }
  const std::vector<Drawn>& Wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
    return drawn_;
  }

 private:
  std::vector<Drawn> drawn_;
  std::mutex mutex_;
  std::condition_variable done_;
  size_t left_;
};

// The second tokens of answers that begin alike have the frequencies that the model gives them,
// though each was guessed before it was drawn.
TEST(OneForward, SpeculationKeepsTheDistribution) {
  constexpr int kRequests = 1500, kTop = 8;
  Trained trained("llama");
  auto engine = Engine::Create(trained.serving(),
                               {.threads = 2,
                                .max_num_seqs = 8,
                                .max_model_len = kContext,
                                .max_queue_size = kRequests,
                                .speculation = {.method = SpeculationMethod::kSelf, .layers = 2}});
  ASSERT_TRUE(engine.ok()) << Message(engine.status());
  const auto prompt = Request(8).prompt;
  Requests requests;
  for (int i = 0; i < kRequests; ++i) {
    requests.push_back(
        {.id = static_cast<uint64_t>(i),
         .prompt = prompt,
         .sampling = {
             .top_k = kTop, .seed = static_cast<uint64_t>(i), .max_tokens = 4, .logprobs = kTop}});
  }
  auto draws = std::make_shared<Draws>(kRequests);
  ASSERT_TRUE((*engine)->Submit(std::move(requests), draws).ok());
  std::map<int32_t, std::vector<const Drawn*>> by_first;
  for (const Drawn& drawn : draws->Wait()) by_first[drawn.first].push_back(&drawn);
  (*engine)->Stop();
  const EngineStats stats = (*engine)->Stats();
  EXPECT_GT(stats.spec_decode_accepted_tokens, 0);
  EXPECT_LT(stats.spec_decode_accepted_tokens, stats.spec_decode_draft_tokens);

  const auto& most = std::ranges::max_element(by_first, {}, [](const auto& entry) {
                       return entry.second.size();
                     })->second;
  std::map<int32_t, int> counts;
  for (const Drawn* drawn : most) ++counts[drawn->second];
  double total = 0, chi_square = 0;
  for (const TokenLogprob& token : most[0]->top) total += std::exp(token.logprob);
  for (const TokenLogprob& token : most[0]->top) {
    const double expected = std::exp(token.logprob) / total * static_cast<double>(most.size());
    chi_square += std::pow(counts[token.token] - expected, 2) / expected;
    counts.erase(token.token);
  }
  EXPECT_TRUE(counts.empty()) << "a token that is none of the likeliest";
  // 7 degrees of freedom: 29.9 is passed once in 10,000.
  EXPECT_LT(chi_square, 29.9) << "of " << most.size() << " answers";
}

}  // namespace
}  // namespace cadre::one_forward
