// Sequences under grammars in the engine: what they say is always of their grammar, whatever else
// happens to them.
#include "serving/token_constraint.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <mutex>

#include "core/host_allocator.h"
#include "model/initialize.h"
#include "model/model.h"
#include "serving/engine.h"
#include "serving/grammar/json_schema.h"
#include "serving/grammar/regex.h"
#include "serving/grammar/schema_oracle.h"

namespace cadre {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVocab = 320;  // bytes, then pieces of JSON, then tokens that are no text
constexpr int32_t kEnd = 319;
constexpr char kConfig[] = R"({"model_type": "qwen3", "vocab_size": 320, "hidden_size": 32,
  "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
  "tie_word_embeddings": false})";

std::vector<std::string> Tokens() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(std::string(1, static_cast<char>(byte)));
  for (const char* piece : {"\":", "\",", "\"}", "}}", "],", "{\"", "[\"", "null", "true", ", \"",
                            "name", "\"name\": ", "12", "-", "abc", "\xc3\xa9", "},\n", "\\\""}) {
    tokens.push_back(piece);
  }
  tokens.resize(kVocab);
  return tokens;
}

class Sink : public EventSink {
 public:
  void OnStep(std::vector<TokenEvent> events) override {
    std::lock_guard lock(mutex_);
    for (TokenEvent& event : events) events_[event.request_id].push_back(std::move(event));
    changed_.notify_all();
  }
  std::vector<TokenEvent> WaitForEnd(uint64_t id) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return !events_[id].empty() && events_[id].back().finish != FinishReason::kNone;
    });
    return events_[id];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, std::vector<TokenEvent>> events_;
};

class ConstrainedEngineTest : public testing::Test {
 protected:
  void SetUp() override {
    Context ctx{.allocator = &allocator_, .threads = 1};
    auto config = ParseHfConfig(kConfig, "config.json");
    ASSERT_TRUE(config.ok()) << Message(config.status());
    auto model = CreateModel(ctx, *std::move(config),
                             {.dtype = DType::kF32, .decoder = {.max_position = 256}});
    ASSERT_TRUE(model.ok()) << Message(model.status());
    model_ = *std::move(model);
    ctx.parameters = &model_->parameters();
    InitializeParameters(ctx, 3);
    Start({});
    const std::vector<std::string> tokens = Tokens();
    trie_ = std::make_shared<const TokenTrie>(
        std::vector<std::string_view>(tokens.begin(), tokens.end()));
  }
  void Start(EngineOptions options) {
    engine_.reset();
    auto engine = Engine::Create(*model_, options);
    ASSERT_TRUE(engine.ok()) << Message(engine.status());
    engine_ = *std::move(engine);
  }

  std::shared_ptr<const CompiledGrammar> Compile(const absl::StatusOr<Grammar>& grammar) {
    EXPECT_TRUE(grammar.ok()) << Message(grammar.status());
    auto compiled = CompiledGrammar::Create(*grammar, trie_);
    return compiled.ok() ? *compiled : nullptr;
  }
  GenerationRequest Request(uint64_t id, std::shared_ptr<const CompiledGrammar> grammar,
                            SamplingParams sampling) {
    sampling.seed = id;
    return {.id = id,
            .prompt = std::make_shared<std::vector<int32_t>>(
                std::vector<int32_t>{1, 2, 3, static_cast<int32_t>(id % 200)}),
            .sampling = std::move(sampling),
            .grammar = std::move(grammar)};
  }
  std::vector<TokenEvent> Run(GenerationRequest request) {
    auto sink = std::make_shared<Sink>();
    const uint64_t id = request.id;
    const absl::Status status = engine_->Submit({std::move(request)}, sink);
    EXPECT_TRUE(status.ok()) << Message(status);
    return sink->WaitForEnd(id);
  }
  std::string Text(const std::vector<TokenEvent>& events) {
    std::string text;
    for (const TokenEvent& event : events) {
      if (event.token >= 0 && event.token != kEnd) text += trie_->Bytes(event.token);
    }
    return text;
  }

  HostAllocator allocator_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<const TokenTrie> trie_;
};

TEST_F(ConstrainedEngineTest, OutputsOfRandomSchemasParseAndValidate) {
  // All at once, so that sequences wait for each other, for blocks and for masks.
  auto sink = std::make_shared<Sink>();
  std::map<uint64_t, Json> schemas;
  uint64_t id = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const Json schema = RandomSchema(seed).Make();
    auto grammar = Compile(ParseJsonSchema(schema));
    if (grammar == nullptr) continue;  // no text satisfies it
    for (float temperature : {0.0f, 1.5f}) {
      schemas[++id] = schema;
      ASSERT_TRUE(engine_
                      ->Submit({Request(id, grammar,
                                        {.temperature = temperature,
                                         .max_tokens = 150,
                                         .stop_token_ids = {kEnd}})},
                               sink)
                      .ok());
    }
  }
  int whole = 0;
  for (const auto& [request, schema] : schemas) {
    const std::vector<TokenEvent> events = sink->WaitForEnd(request);
    ASSERT_NE(events.back().finish, FinishReason::kError) << Message(events.back().error);
    if (events.back().finish == FinishReason::kLength) continue;
    ++whole;
    const std::string text = Text(events);
    const Json value = Json::parse(text, nullptr, false);
    ASSERT_FALSE(value.is_discarded()) << schema << "\n" << text;
    ASSERT_TRUE(SchemaOracle(schema).Valid(value)) << schema << "\n" << text;
  }
  EXPECT_GT(schemas.size(), 80u);
  EXPECT_GT(whole, 30);
}

TEST_F(ConstrainedEngineTest, TheSameTextAloneTogetherAndAfterPreemption) {
  auto grammar = Compile(ParseRegex("([a-z]{3,5} ){20,30}"));
  const SamplingParams sampling{.temperature = 2, .max_tokens = 150, .stop_token_ids = {kEnd}};
  std::vector<std::string> alone;
  for (uint64_t id = 1; id <= 6; ++id) alone.push_back(Text(Run(Request(id, grammar, sampling))));
  EXPECT_NE(alone[0], alone[1]);
  // Blocks for about two of the six.
  std::vector<ops::KvLayout> layouts;
  for (const LayerSpec& layer : model_->spec().layers) {
    layouts.push_back(KvLayoutOf(layer.attention, model_->dtype(), 16));
  }
  Start({.growth_reserve_tokens = 0,
         .kv_cache_memory_bytes = static_cast<int64_t>(KvBlockPool::BytesPerBlock(layouts)) * 20});
  auto sink = std::make_shared<Sink>();
  std::vector<GenerationRequest> requests;
  for (uint64_t id = 1; id <= 6; ++id) requests.push_back(Request(id, grammar, sampling));
  ASSERT_TRUE(engine_->Submit(requests, sink).ok());
  for (uint64_t id = 1; id <= 6; ++id) EXPECT_EQ(Text(sink->WaitForEnd(id)), alone[id - 1]);
  EXPECT_GT(engine_->Stats().num_preemptions, 0);
}

TEST_F(ConstrainedEngineTest, TheSameTextWithGuesses) {
  // What repeats is guessed well, by the text and, greedily, by the model itself.
  auto grammar = Compile(ParseRegex("((one|two|three) ){8,20}[.!]"));
  std::map<uint64_t, std::vector<TokenEvent>> plain;
  const auto request = [&](uint64_t id) {
    return Request(id, grammar,
                   {.temperature = id % 2 == 0 ? 0.0f : 1.0f,
                    .max_tokens = 140,
                    .stop_token_ids = {kEnd},
                    .logprobs = 0});
  };
  for (uint64_t id = 1; id <= 6; ++id) plain[id] = Run(request(id));
  const auto draft = ModelHome::Of(*model_);
  for (const SpeculationMethod method :
       {SpeculationMethod::kNgram, SpeculationMethod::kSelf, SpeculationMethod::kDraftModel}) {
    Start({.speculation = {.method = method, .draft = draft.get(), .layers = 2}});
    auto sink = std::make_shared<Sink>();
    std::vector<GenerationRequest> requests;
    for (uint64_t id = 1; id <= 6; ++id) requests.push_back(request(id));
    ASSERT_TRUE(engine_->Submit(requests, sink).ok());
    for (uint64_t id = 1; id <= 6; ++id) {
      const std::vector<TokenEvent> guessed = sink->WaitForEnd(id);
      ASSERT_EQ(guessed.size(), plain[id].size()) << id;
      EXPECT_EQ(Text(guessed), Text(plain[id]));
      EXPECT_EQ(guessed.back().finish, plain[id].back().finish);
      for (size_t i = 0; i < guessed.size(); ++i) {
        EXPECT_EQ(guessed[i].token, plain[id][i].token);
        EXPECT_EQ(guessed[i].logprob, plain[id][i].logprob);
      }
    }
    EXPECT_GT(engine_->Stats().spec_decode_draft_tokens, 0);
    if (method == SpeculationMethod::kNgram) {
      EXPECT_GT(engine_->Stats().spec_decode_accepted_tokens, 0);
    }
  }
}

TEST_F(ConstrainedEngineTest, ATextThatIsWholeEnds) {
  auto grammar = Compile(ParseRegex("abc"));
  // With ends of sequence one is sampled; without, the grammar's own end is one.
  std::vector<TokenEvent> events =
      Run(Request(1, grammar, {.max_tokens = 50, .stop_token_ids = {kEnd}}));
  EXPECT_EQ(Text(events), "abc");
  EXPECT_EQ(events.back().finish, FinishReason::kStop);
  EXPECT_EQ(events.back().token, kEnd);
  events = Run(Request(2, grammar, {.max_tokens = 50}));
  EXPECT_EQ(Text(events), "abc");
  EXPECT_EQ(events.back().finish, FinishReason::kStop);
  EXPECT_EQ(events.back().token, -1);
  // min_tokens cannot ask for more than the grammar has.
  events = Run(Request(3, grammar, {.max_tokens = 50, .min_tokens = 40, .stop_token_ids = {kEnd}}));
  EXPECT_EQ(Text(events), "abc");
  EXPECT_EQ(events.back().finish, FinishReason::kStop);
  // Guesses about what comes behind the end.
  Start({.speculation = {.method = SpeculationMethod::kSelf, .layers = 2}});
  events = Run(Request(4, grammar, {.max_tokens = 50}));
  EXPECT_EQ(Text(events), "abc");
  EXPECT_EQ(events.back().finish, FinishReason::kStop);
  EXPECT_GT(engine_->Stats().spec_decode_draft_tokens, 0);
}

TEST_F(ConstrainedEngineTest, LogprobsStayThoseOfTheRawLogits) {
  auto grammar = Compile(ParseRegex("[ab]{4}"));
  const std::vector<TokenEvent> events = Run(
      Request(1, grammar,
              {.temperature = 0, .max_tokens = 8, .stop_token_ids = {kEnd}, .logprobs = kVocab}));
  ASSERT_GE(events.size(), 4u);
  for (const TokenEvent& event : events) {
    double sum = 0;
    for (const TokenLogprob& top : event.top) sum += std::exp(static_cast<double>(top.logprob));
    EXPECT_NEAR(sum, 1, 1e-4);  // over all tokens, allowed or not
    const auto chosen = std::ranges::find(event.top, event.token, &TokenLogprob::token);
    EXPECT_EQ(chosen->logprob, event.logprob);
  }
}

TEST_F(ConstrainedEngineTest, AVocabularyThatCannotGoOnEndsTheRequestInAnError) {
  // No token holds the letter that must come second.
  const std::vector<std::string> tokens = {"a", "c"};
  trie_ = std::make_shared<const TokenTrie>(
      std::vector<std::string_view>(tokens.begin(), tokens.end()));
  const std::vector<TokenEvent> events =
      Run(Request(1, Compile(ParseRegex("ab")), {.max_tokens = 8, .stop_token_ids = {kEnd}}));
  EXPECT_EQ(events.back().finish, FinishReason::kError);
  EXPECT_EQ(events.back().error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Run(Request(2, nullptr, {.max_tokens = 3})).size(), 3u);
}

TEST(TokenConstraint, NoTokenBeyondTheModelsIsAllowed) {
  // The tokenizer has a token more than the model.
  std::vector<std::string> tokens(71);
  tokens[69] = "a";
  tokens[70] = "b";
  const auto trie = std::make_shared<const TokenTrie>(
      std::vector<std::string_view>(tokens.begin(), tokens.end()));
  const auto first = [&](const char* regex) {
    const auto grammar = CompiledGrammar::Create(*ParseRegex(regex), trie);
    EXPECT_TRUE(grammar.ok()) << Message(grammar.status());
    auto constraint = std::make_shared<TokenConstraint>(*grammar, std::vector<int32_t>{70}, 70);
    MaskWorker worker;
    worker.Start(constraint);
    return worker.Wait(*constraint);
  };
  TokenConstraint::Next next = first("[ab]?");
  EXPECT_TRUE(next.may_go_on());
  EXPECT_EQ(next.allowed, (std::vector<uint64_t>{0, uint64_t{1} << 5}));
  next = first("b");
  EXPECT_EQ(next.status.code(), absl::StatusCode::kInvalidArgument);
  next = first("b?");
  EXPECT_TRUE(next.status.ok());
  EXPECT_TRUE(next.ended);
}

}  // namespace
}  // namespace cadre
