// Engine: continuous batching over one model. One thread runs the loop plan → forward → sample →
// report; only it enters OpenMP or touches the scheduler and the KV cache. Requests and cancels
// come in through a bounded queue; each step's events go out together, one call per sink.
//
//   CADRE_ASSIGN_OR_RETURN(auto engine, Engine::Create(*model, options));
//   engine->Submit({request}, sink);   // any thread
//   ...
//   engine->Stop();                    // unfinished requests end with kCancelled
//
// Nobody else runs the model meanwhile.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "core/context.h"
#include "core/host_allocator.h"
#include "core/ops/gemm.h"
#include "memory/kv_cache.h"
#include "serving/event_outbox.h"
#include "serving/expert_load.h"
#include "serving/kv_budget.h"
#include "serving/kv_plan.h"
#include "serving/lanes.h"
#include "serving/logit_rows.h"
#include "serving/model_home.h"
#include "serving/queue_bounds.h"
#include "serving/request.h"
#include "serving/scheduler.h"
#include "serving/serving_ranks.h"
#include "serving/sleep_queue.h"
#include "serving/speculation.h"
#include "serving/step_cost.h"
#include "serving/step_forward.h"
#include "serving/step_plan.h"
#include "serving/token_budget.h"
#include "serving/token_constraint.h"
#include "serving/token_report.h"

namespace cadre {

struct EngineOptions {
  int threads = 1;
  int max_num_seqs = 64;
  int64_t max_num_batched_tokens = 2048;  // 0: measured, as the next (serving/token_budget.h)
  int64_t max_num_mixed_tokens = 0;
  bool enable_chunked_prefill = true;
  int64_t growth_reserve_tokens = 128;  // see SchedulerOptions
  QueueOptions queue;
  int64_t max_model_len = 0;  // 0: the model's
  int block_size = 16;
  // What keys and values are kept as; none: the model's type.
  ops::KvQuantization kv_quantization = ops::KvQuantization::kNone;
  int64_t kv_cache_memory_bytes =
      0;  // 0: what max_num_seqs contexts need, at most a quarter of the RAM
  bool enable_prefix_caching = true;  // changes no bit
  bool prefix_cache_by_key = false;   // prefixes are each tenant's own, whatever its salts
  EvictionOptions eviction;
  KvTierOptions kv_tiers;  // where cached prefixes go that leave the KV cache
  int max_queue_size = 256;
  int max_requests_per_key = 0;  // that run or wait; 0: no bound
  int attention_workers = 0;     // 0: as many as keep the threads busy; changes no bit
  double stuck_seconds = 30;     // a loop that is busy for longer without a step is not ready
  SpeculationOptions speculation;
  Trace* trace = nullptr;
  // The other ranks, which follow this one (serving/follower.h); null: there are none. Outlives the
  // engine.
  ServingRanks* ranks = nullptr;
  // Called once from the engine's thread, when it can serve no more since a rank is lost.
  std::function<void(const absl::Status&)> on_failure = {};
};

// The KV cache of an engine with these options. Over ranks all of them call. Errors as Create's.
absl::StatusOr<KvPlan> PlanCacheOf(const Model& model, const EngineOptions& options);
TokenBudgetOptions BudgetOptionsOf(const EngineOptions& options);

class Engine : public EngineClient {
 public:
  // Starts the thread. kInvalidArgument where the options do not fit the model, kResourceExhausted
  // where a KV cache of the default size does not fit the memory that is free.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::unique_ptr<ModelHome> home,
                                                        const EngineOptions& options);
  // Of a model that outlives the engine. It sleeps at level 1 alone.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(Model& model,
                                                        const EngineOptions& options) {
    return Create(ModelHome::Of(model), options);
  }
  ~Engine() override;

  absl::Status Submit(std::vector<GenerationRequest> requests,
                      std::shared_ptr<EventSink> sink) override;
  void Cancel(uint64_t id) override;
  void Sleep(int level, SleepDone done) override;
  void Wake(WakeDone done) override;
  ModelInfo Info() const override;
  EngineHealth Health() const override;
  EngineStats Stats() const override;

  // Ends the loop after its current step; every unfinished request ends with kCancelled.
  // Idempotent.
  void Stop();

  int64_t kv_blocks() const { return lanes_->blocks(); }
  const TokenBudget& token_budget() const { return budget_; }

 private:
  Engine(std::unique_ptr<ModelHome> home, const EngineOptions& options);

  void Loop();
  // Moves what came in to the scheduler; waits where there is nothing to do. False: stop.
  bool TakeInput();
  absl::Status Step(std::span<const ScheduledChunk> chunks);
  // The forward of chunks that are not read by layers, and what it tells of their prompts.
  absl::Status RunChunks(StepForward& forward, std::span<const ScheduledChunk> chunks,
                         std::span<const StepPlan> plans);
  // Reads shares of evicting sequences' prompts; those that are whole now are sampled with the
  // rest.
  void ReadShares(StepForward& forward, std::span<const ScheduledChunk> shares,
                  std::vector<ScheduledChunk>* chunks, StepPlan* plan);
  EvictionDeps eviction_deps() const;
  // Tells the other ranks, if any, what all of them do now; numbers the message.
  absl::Status Tell(StepMessage message);
  absl::Status Sample(StepForward& forward, std::span<const ScheduledChunk> chunks,
                      std::span<const StepPlan> plans);
  // Prompt logprobs and embeddings.
  void ReadPrompts(StepForward& forward, std::span<const ScheduledChunk> chunks,
                   std::span<const StepPlan> plans);
  // Why it takes nothing more, if so. Under the mutex.
  absl::Status Ended() const;
  // What went wrong with the other ranks in this step.
  absl::Status Failure() const;
  // The engine can go on no more.
  void Fail(const absl::Status& status);
  void EndAll(FinishReason reason, const absl::Status& error = absl::OkStatus());
  struct SampledRow {
    Sequence* sequence;
    int64_t row;                                  // of the step's logits
    const TokenConstraint::Next* mask = nullptr;  // null: no grammar

    bool may_go_on() const { return mask == nullptr || mask->may_go_on(); }
  };
  // A token for each row; fills in what grammars allow.
  std::vector<int32_t> DrawAll(std::span<SampledRow> rows, const LogitRows& logits);
  // Those of `which` rows.
  void Draw(std::span<const SampledRow> rows, std::span<const size_t> which,
            const LogitRows& logits, std::span<int32_t> tokens);
  // True: the sequence's last token.
  bool Append(Sequence& sequence, const SampledToken& sampled);
  // What was guessed for the sequence has been looked at.
  void EndDraft(Sequence& sequence, int64_t accepted);
  // The sequence's first `tokens` are stored.
  void Commit(Sequence& sequence, int64_t tokens);
  void Emit(Sequence& sequence, TokenEvent event);
  // Takes a sequence, or null where it is unknown, from the scheduler; its id may be used again.
  std::unique_ptr<Sequence> Forget(uint64_t id);
  void Finish(uint64_t id, FinishReason reason, absl::Status error = absl::OkStatus());
  int64_t weight_version() const;  // engine thread, the weights being there
  void PublishGauges();
  void CountStep(std::span<const ScheduledChunk> chunks);
  void CountWork(const StepWork& work);
  // Where other ranks route, too, asks them for their counts, not in every step.
  absl::Status PublishLoad();

  void CarryOut(SleepCommands commands);
  void GiveUpMemory(int level);
  absl::Status TakeMemory();
  void GiveUpOwnMemory(int level);
  absl::Status TakeOwnMemory();
  void Settle(const absl::Status& woken);
  void RefuseSleepers();

  EngineOptions options_;
  std::unique_ptr<ModelHome> home_;
  const int64_t vocab_, hidden_;
  const bool latent_;
  HostAllocator allocator_;
  PackedWeights packed_;
  Context ctx_;
  int64_t steps_told_ = 0;
  absl::Status lost_;  // what of the ranks made telling them fail
  std::unique_ptr<Lanes> lanes_;
  TokenBudget budget_;
  std::unique_ptr<Speculation> speculation_;  // null: none
  ExpertLoad load_;
  StepCost cost_;
  double load_published_ = 0;
  EventOutbox outbox_;
  MaskWorker masks_;
  int sleep_level_ = 0;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::vector<std::unique_ptr<Sequence>> incoming_;
  std::vector<uint64_t> cancels_;
  QueueBounds bounds_;
  SleepQueue sleep_;
  bool stopping_ = false;
  absl::Status failure_;
  EngineStats stats_;
  int64_t weight_version_ = 0;
  bool idle_ = true;
  double last_step_ = 0;

  std::thread thread_;
};

// Seconds on the engine's clock.
double Now();

}  // namespace cadre
