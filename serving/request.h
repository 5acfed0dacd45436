// The seam between the HTTP front and the engine: what a request asks, what the engine answers.
//
// The front (any of its threads) submits token ids and gets events back; it renders templates,
// tokenizes, detokenizes and matches stop strings itself, so the engine sees ids only. The engine
// has one thread, calls every sink at most once per step with all of that step's events for it, and
// never waits for a sink.
//
//   auto sink = std::make_shared<MySink>();
//   GenerationRequest request{.id = NextId(), .prompt = prompt, .sampling = {.max_tokens = 16}};
//   CADRE_RETURN_IF_ERROR(engine.Submit({request}, sink));
//   ... MySink::OnStep(events) until an event of this id has finish != kNone
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"

namespace cadre {

class CompiledGrammar;

struct TokenBias {
  int32_t token = -1;
  float bias = 0;
};

// How one sequence is sampled. Values are checked by the front; the engine may CHECK them.
struct SamplingParams {
  float temperature = 1;  // >= 0; 0 is greedy and makes top_k, top_p, min_p and seed meaningless
  int top_k = 0;          // 0: no limit
  float top_p = 1;        // (0, 1]; 1: no limit
  float min_p = 0;        // [0, 1]; keeps tokens with p >= min_p * max p
  // See logit_adjustments.h; logprobs stay those of the raw logits.
  float repetition_penalty = 1;  // > 0; over 1 discourages
  float frequency_penalty = 0;
  float presence_penalty = 0;
  std::vector<TokenBias> logit_bias;
  // Draws are keyed by (seed, choice, position), so a request repeats whatever its batch.
  uint64_t seed = 0;
  uint32_t choice = 0;  // index among the n sequences of one HTTP request
  int max_tokens = 16;  // 0: read the prompt, sample nothing
  int min_tokens = 0;   // no token of stop_token_ids is sampled before this many
  // Ends of sequence and the request's own stop ids, sorted, unique; empty under ignore_eos
  // unless the request names some.
  std::vector<int32_t> stop_token_ids;
  int logprobs = -1;         // -1: none; k >= 0: the sampled token's and the k most likely
  int prompt_logprobs = -1;  // the same for every prompt token; bypasses prefix-cache hits
};

// What of the decoder's outputs over the prompt a request gets back, see pooling.h.
enum class Pooling { kNone, kMean, kLast };

struct GenerationRequest {
  uint64_t id = 0;   // chosen by the submitter, unique among those in flight
  int priority = 0;  // the lower, the earlier it is scheduled
  std::shared_ptr<const std::vector<int32_t>> prompt;  // not empty; shared by the n choices
  SamplingParams sampling;
  // Requests share cached prefixes with those of the same salt alone (cache_salt: one per tenant).
  std::string cache_salt;
  // What the text must be of (serving/grammar/compiled_grammar.h); null: anything. Shared by any
  // number of requests.
  std::shared_ptr<const CompiledGrammar> grammar;
  Pooling pooling = Pooling::kNone;
  // Keys and values to keep, per layer and KV head on the average, and the policy that says which
  // (memory/kv_eviction.h); 0 and empty: as the deployment has it.
  int64_t kv_budget = 0;
  std::string kv_eviction;
  // Whose request it is, for fair shares and bounds by key: a name of the API key, never the key.
  std::string tenant;
};

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0;  // log-softmax of the raw fp32 logits, whatever the temperature
  int rank = 0;       // of prompt tokens: 1 for the most likely; 0 where not asked for
};

enum class FinishReason {
  kNone,
  kStop,       // a stop token was sampled; it is this event's token. -1: the grammar is at its end
  kLength,     // max_tokens or the context is full
  kCancelled,  // Cancel was called
  kError,      // see TokenEvent::error
};

// One step's news of one request. Events of a request come in order; exactly one, its last, has
// finish != kNone. No event follows it.
struct TokenEvent {
  uint64_t request_id = 0;
  int32_t token = -1;             // -1: this event brings no token
  float logprob = 0;              // of token; valid where the request asked for logprobs
  std::vector<TokenLogprob> top;  // most likely first, ties by the lower id
  // Where asked, in the request's first event: entry i is prompt token i; entry 0 has no logprob
  // (NaN). prompt_top[i] are the most likely tokens at i.
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<std::vector<TokenLogprob>> prompt_top;
  std::vector<float> embedding;  // where asked, in the first event: [D], not normalized
  FinishReason finish = FinishReason::kNone;
  absl::Status error;          // with kError
  int cached_tokens = 0;       // prompt tokens found in the prefix cache; in the first event
  int64_t weight_version = 0;  // of the weights that made this token
  // In the last event: from Submit to the first scheduled step, and from there to the first token;
  // to the end, where that came before.
  double queue_seconds = 0;
  double prefill_seconds = 0;
};

// Receives events. OnStep runs on the engine thread and must return at once (hand the vector over
// to another thread); it must not call the engine back.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void OnStep(std::vector<TokenEvent> events) = 0;
};

// Fixed facts of the loaded model, except weight_version.
struct ModelInfo {
  int max_context = 0;  // prompt and generated tokens together
  // As many of one request fit the KV cache; less than the context where that is small. Budgets
  // (kv_budget) aside.
  int max_sequence = 0;
  int vocab_size = 0;
  int hidden_size = 0;          // values of an embedding
  bool takes_priority = false;  // GenerationRequest::priority says something to the queue's policy
  int64_t weight_version = 0;
};

struct EngineHealth {
  bool ready = false;  // weights are loaded, and a step ended recently or nothing is to do
  // Why not, in one line; empty when ready. Anyone may read the reason; the failure behind it, if
  // there is one, may name files and machines.
  std::string reason, failure;
  int sleep_level = 0;  // that it sleeps at; 0: awake, or not asleep yet
  double seconds_since_step = 0;
};

// Upper bounds of EngineStats::step_counts; its last entry counts the steps above them all.
inline constexpr std::array<int64_t, 13> kStepTokenBounds = {1,   8,    16,   32,   64,   128,  256,
                                                             512, 1024, 2048, 4096, 8192, 16384};

// How many tokens the router of a mixture layer gave to each expert.
struct LayerExpertTokens {
  int layer = 0;
  std::vector<int64_t> tokens;  // [E]
};

// Gauges as of now and counters since the start, under the names of /metrics.
struct EngineStats {
  int num_requests_running = 0;
  int num_requests_waiting = 0;
  double kv_cache_usage = 0;         // 0..1
  int64_t prefix_cache_queries = 0;  // prompt tokens that were looked up
  int64_t prefix_cache_hits = 0;     // of them, found
  int64_t num_preemptions = 0;
  int64_t recomputed_tokens = 0;   // computed again after preemptions
  int64_t spec_decode_drafts = 0;  // sequences times steps in which tokens were guessed
  int64_t spec_decode_draft_tokens = 0;
  int64_t spec_decode_accepted_tokens = 0;
  int64_t num_steps = 0;
  int64_t step_tokens = 0;  // computed in all steps together
  // What the steps took, see StepCost, and what the machine was measured to reach in a second; 0
  // where it was not.
  double model_flops = 0, model_bytes = 0;
  double peak_flops_per_second = 0, peak_bytes_per_second = 0;
  std::array<int64_t, kStepTokenBounds.size() + 1> step_counts = {};  // steps by their tokens
  // Mixture layers, in order. Where ranks route apart, as of the last time that they were asked:
  // when nothing was left to do, else within the last second.
  std::vector<LayerExpertTokens> expert_tokens = {};
};

// The engine as the front sees it. Every method may be called from any thread and returns at once.
class EngineClient {
 public:
  virtual ~EngineClient() = default;

  // Queues all requests or none. kResourceExhausted: the queue is full. kUnavailable: not ready,
  // asleep or stopping. kInvalidArgument: an empty or too long prompt, more requests than
  // an empty queue takes, an id in use. kUnimplemented: an option the engine does not have. After
  // an error the sink gets nothing of these ids.
  virtual absl::Status Submit(std::vector<GenerationRequest> requests,
                              std::shared_ptr<EventSink> sink) = 0;

  // Ends a request at the next step; its last event has kCancelled unless it ended before. An
  // unknown id is ignored.
  virtual void Cancel(uint64_t id) = 0;

  // Puts the engine to sleep, so that others can use its memory. From now on Submit is kUnavailable
  // and Health says so; what runs or waits finishes first. Level 1 gives up the KV cache (its
  // bytes, the prefix index, the tiers) and holds the weights; level 2 gives up the weights, too. A
  // sleeper may be sent deeper; level 1 is nothing to one at level 2.
  //
  // `done` runs once, on the engine's thread (on the caller's where it is refused at once), and
  // must return at once: OK when it sleeps, also where it did before; kInvalidArgument: another
  // level; kUnimplemented: level 2 of weights that were not loaded from a folder; kAborted: Wake
  // came before it slept; kUnavailable: the engine stops.
  virtual void Sleep(int level, std::function<void(absl::Status)> done) = 0;

  // Ends a sleep: takes the memory again and loads the weights from the model's folder where they
  // were given up. Requests are taken when `done` (as above) brings the version of the weights
  // that serve now. After an error (the memory is taken, the folder is gone) it sleeps on and Wake
  // may be tried again. Nothing to do where it is awake.
  virtual void Wake(std::function<void(absl::StatusOr<int64_t>)> done) = 0;

  virtual ModelInfo Info() const = 0;
  virtual EngineHealth Health() const = 0;
  virtual EngineStats Stats() const = 0;
};

}  // namespace cadre
