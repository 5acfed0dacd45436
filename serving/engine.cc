#include "serving/engine.h"

#include <algorithm>
#include <chrono>

#include "core/trace.h"
#include "serving/token_report.h"

namespace cadre {
namespace {

// How old the counts of experts over ranks may be while steps run.
constexpr double kLoadSeconds = 1;

size_t LanesOf(const EngineOptions& options) {
  return options.ranks == nullptr ? 1 : static_cast<size_t>(options.ranks->lanes());
}

// With its length, so that no salt is part of another tenant's name.
std::string SaltOfTenant(const GenerationRequest& request) {
  return fmt::format("{}:{}{}", request.tenant.size(), request.tenant, request.cache_salt);
}

int64_t ContextOf(const Model& model, const EngineOptions& options) {
  return options.max_model_len > 0 ? options.max_model_len : model.decoder().max_position();
}

}  // namespace

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Engine::Engine(std::unique_ptr<ModelHome> home, const EngineOptions& options)
    : options_(options),
      home_(std::move(home)),
      vocab_(home_->model()->spec().vocab),
      hidden_(home_->model()->spec().hidden),
      latent_(HasLatentAttention(home_->model()->spec())),
      load_(home_->model()->spec()),
      bounds_({.sequences = static_cast<size_t>(options.max_queue_size) +
                            static_cast<size_t>(options.max_num_seqs) * LanesOf(options),
               .per_tenant = static_cast<size_t>(options.max_requests_per_key)}) {
  packed_ = std::move(home_->model()->packed());
  ctx_ = {.allocator = &allocator_,
          .threads = options.threads,
          .parameters = &home_->model()->parameters(),
          .packed = &packed_,
          .trace = options.trace,
          .groups = options.ranks == nullptr ? nullptr : options.ranks->groups()};
}

absl::StatusOr<KvPlan> PlanCacheOf(const Model& model, const EngineOptions& options) {
  const int64_t model_context = model.decoder().max_position();
  if (options.max_model_len > model_context) {
    return InvalidArgument("max_model_len: {}, the model has {} positions", options.max_model_len,
                           model_context);
  }
  if (options.ranks != nullptr && options.kv_tiers.host_bytes + options.kv_tiers.disk_bytes > 0)
    return InvalidArgument("kv_host_cache_bytes, kv_disk_cache_bytes: not built for several ranks");
  return PlanKvCache(model, {.context = ContextOf(model, options),
                             .max_num_seqs = options.max_num_seqs,
                             .block_size = options.block_size,
                             .quantization = options.kv_quantization,
                             .kv_cache_memory_bytes = options.kv_cache_memory_bytes,
                             .ranks = options.ranks});
}

TokenBudgetOptions BudgetOptionsOf(const EngineOptions& options) {
  return {.max_num_batched_tokens = options.max_num_batched_tokens,
          .max_num_mixed_tokens = options.max_num_mixed_tokens,
          .max_num_seqs = options.max_num_seqs,
          .ranks = options.ranks};
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::unique_ptr<ModelHome> home,
                                                       const EngineOptions& options) {
  Model& model = *home->model();
  CADRE_ASSIGN_OR_RETURN(KvPlan kv, PlanCacheOf(model, options));
  const int64_t context = ContextOf(model, options);
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<KvTiers> tiers,
                         MakeKvTiers(kv.layouts, options.kv_tiers, options.enable_prefix_caching));
  std::unique_ptr<Engine> engine(new Engine(std::move(home), options));
  CADRE_ASSIGN_OR_RETURN(engine->budget_,
                         ChooseTokenBudget(engine->ctx_, model, BudgetOptionsOf(options)));
  const SchedulerOptions scheduler{.max_num_seqs = options.max_num_seqs,
                                   .max_num_batched_tokens = engine->budget_.step,
                                   .max_num_mixed_tokens = engine->budget_.mixed,
                                   .max_context = context,
                                   .chunked_prefill = options.enable_chunked_prefill,
                                   .growth_reserve = options.growth_reserve_tokens,
                                   .queue = options.queue};
  engine->lanes_ =
      std::make_unique<Lanes>(engine->allocator_, kv,
                              Lanes::Options{.lanes = static_cast<int>(LanesOf(options)),
                                             .scheduler = scheduler,
                                             .prefix_caching = options.enable_prefix_caching,
                                             .tiers = std::move(tiers)});
  engine->options_.max_model_len = context;
  if (options.speculation.method != SpeculationMethod::kNone) {
    CADRE_ASSIGN_OR_RETURN(
        engine->speculation_,
        Speculation::Create(options.speculation, {.ctx = engine->ctx_,
                                                  .home = *engine->home_,
                                                  .cache = engine->lanes_->own_cache(),
                                                  .max_context = context,
                                                  .max_num_batched_tokens = engine->budget_.step,
                                                  .max_num_seqs = options.max_num_seqs,
                                                  .ranks = options.ranks != nullptr,
                                                  .lanes = engine->lanes_->count()}));
  }
  CADRE_RETURN_IF_ERROR(CheckEviction(options.eviction, model.spec(), engine->eviction_deps()));
  std::vector<ops::KvLayout> layouts;
  for (const LayerSpec& layer : model.spec().layers) {
    layouts.push_back(
        KvLayoutOf(layer.attention, model.dtype(), options.block_size, options.kv_quantization));
  }
  engine->cost_ =
      StepCost(model.spec(), WeightBytes::Of(model.parameters(), model.dtype()), layouts);
  engine->stats_.peak_flops_per_second = engine->budget_.peaks.flops_per_second;
  engine->stats_.peak_bytes_per_second = engine->budget_.peaks.bytes_per_second;
  engine->last_step_ = Now();
  engine->weight_version_ = static_cast<int64_t>(model.parameters().version());
  engine->thread_ = std::thread(&Engine::Loop, engine.get());
  return engine;
}

Engine::~Engine() { Stop(); }

void Engine::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

absl::Status Engine::Submit(std::vector<GenerationRequest> requests,
                            std::shared_ptr<EventSink> sink) {
  // These read what Create fixed, so any thread may call them.
  std::vector<std::unique_ptr<EvictingSequence>> evicting;
  for (const GenerationRequest& request : requests) {
    const int64_t tokens =
        request.prompt == nullptr ? 0 : static_cast<int64_t>(request.prompt->size());
    std::unique_ptr<EvictingSequence>& kept = evicting.emplace_back();
    if (tokens > 0) {
      CADRE_ASSIGN_OR_RETURN(kept, MakeEvicting(request, options_.eviction, eviction_deps()));
    }
    CADRE_RETURN_IF_ERROR(lanes_->Admissible(tokens, request.sampling, kept.get()));
    for (int32_t id : *request.prompt) {
      if (id < 0 || id >= vocab_)
        return InvalidArgument("prompt: token id {}, allowed are 0 to {}", id, vocab_ - 1);
    }
  }
  std::lock_guard lock(mutex_);
  CADRE_RETURN_IF_ERROR(Ended());
  if (std::string asleep = sleep_.State(); !asleep.empty()) return Unavailable("{}", asleep);
  const double now = Now();
  CADRE_RETURN_IF_ERROR(bounds_.Enter(requests, now));
  for (size_t i = 0; i < requests.size(); ++i) {
    GenerationRequest& request = requests[i];
    if (options_.prefix_cache_by_key) request.cache_salt = SaltOfTenant(request);
    auto sequence = std::make_unique<Sequence>();
    sequence->tokens = *request.prompt;
    sequence->evicting = std::move(evicting[i]);
    sequence->request = std::move(request);
    sequence->sink = sink;
    sequence->submitted = now;
    if (sequence->request.grammar != nullptr) {
      sequence->constraint = std::make_shared<TokenConstraint>(
          sequence->request.grammar, sequence->request.sampling.stop_token_ids, vocab_);
      masks_.Start(sequence->constraint);
    }
    incoming_.push_back(std::move(sequence));
  }
  wake_.notify_one();
  return absl::OkStatus();
}

void Engine::Cancel(uint64_t id) {
  std::lock_guard lock(mutex_);
  if (!bounds_.contains(id)) return;
  cancels_.push_back(id);
  wake_.notify_one();
}

ModelInfo Engine::Info() const {
  std::lock_guard lock(mutex_);
  // Layers of a sequence that evicts end in units of their own: a block more than its tokens fill.
  const int64_t held =
      lanes_->capacity() - (options_.eviction.policy.empty() ? 0 : options_.block_size);
  return {.max_context = static_cast<int>(options_.max_model_len),
          .max_sequence = static_cast<int>(std::min(options_.max_model_len, held)),
          .vocab_size = static_cast<int>(vocab_),
          .hidden_size = static_cast<int>(hidden_),
          .takes_priority = options_.queue.policy != SchedulingPolicy::kFcfs,
          .weight_version = weight_version_};
}

EngineHealth Engine::Health() const {
  std::lock_guard lock(mutex_);
  EngineHealth health{
      .ready = true, .sleep_level = sleep_.level(), .seconds_since_step = Now() - last_step_};
  if (stopping_ || !failure_.ok()) {
    health.ready = false;
    health.reason = failure_.ok() ? "the engine is stopping" : "the engine has failed";
    health.failure = Message(failure_);
  } else if (std::string asleep = sleep_.State(); !asleep.empty()) {
    health.ready = false;
    health.reason = asleep;
    health.failure = sleep_.failure();
  } else if (!idle_ && health.seconds_since_step > options_.stuck_seconds) {
    health.ready = false;
    health.reason = fmt::format("no step ended for {:.0f} s", health.seconds_since_step);
  }
  return health;
}

EngineStats Engine::Stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.expert_tokens = load_.Read();
  stats.num_requests_waiting += static_cast<int>(incoming_.size());
  return stats;
}

bool Engine::TakeInput() {
  std::vector<std::unique_ptr<Sequence>> incoming;
  std::vector<uint64_t> cancels;
  SleepCommands commands;
  {
    std::unique_lock lock(mutex_);
    idle_ = lanes_->running() + lanes_->waiting() == 0;
    const auto nothing_left = [this] { return idle_ && incoming_.empty(); };
    wake_.wait(lock, [&] {
      return stopping_ || !nothing_left() || !cancels_.empty() || sleep_.HasWork(nothing_left());
    });
    if (idle_) last_step_ = Now();
    if (stopping_) return false;
    commands = sleep_.Take(nothing_left());
    idle_ = false;
    incoming.swap(incoming_);
    cancels.swap(cancels_);
  }
  for (auto& sequence : incoming) lanes_->Add(std::move(sequence));
  for (uint64_t id : cancels) Finish(id, FinishReason::kCancelled);
  if (!commands.empty()) CarryOut(std::move(commands));
  return true;
}

void Engine::Loop() {
  if (options_.trace != nullptr) options_.trace->NameThread("engine");
  while (TakeInput()) {
    if (!lost_.ok()) return Fail(lost_);
    if (sleep_level_ > 0) continue;
    lanes_->SetWeightVersion(weight_version());
    std::vector<ScheduledChunk> chunks = lanes_->Plan(Now());
    PublishGauges();  // a long step must not hide what it runs
    if (speculation_ != nullptr) speculation_->Draft(chunks);
    absl::Status stepped = chunks.empty() ? absl::OkStatus() : Step(chunks);
    if (stepped.ok() && !chunks.empty()) stepped = PublishLoad();
    if (!stepped.ok()) return Fail(stepped);
    // Whoever waits may wait for blocks that are being read.
    if (chunks.empty()) lanes_->own_cache().WaitForFetch();
    CountStep(chunks);
    PublishGauges();
    outbox_.Flush();
  }
  // Ranks that are lost by now have ended, too.
  Tell({.kind = StepKind::kStop}).IgnoreError();
  EndAll(FinishReason::kCancelled);
}

absl::Status Engine::Tell(StepMessage message) {
  if (options_.ranks == nullptr) return absl::OkStatus();
  message.number = steps_told_++;
  lost_ = options_.ranks->Tell(message);
  return lost_;
}

absl::Status Engine::Ended() const {
  if (!failure_.ok()) return Unavailable("the engine has failed: {}", Message(failure_));
  return stopping_ ? Unavailable("the engine is stopping") : absl::OkStatus();
}

absl::Status Engine::Failure() const {
  return options_.ranks == nullptr ? absl::OkStatus() : options_.ranks->failure();
}

void Engine::Fail(const absl::Status& status) {
  {
    std::lock_guard lock(mutex_);
    failure_ = status;
  }
  EndAll(FinishReason::kError, status);
  if (options_.on_failure) options_.on_failure(status);
}

void Engine::EndAll(FinishReason reason, const absl::Status& error) {
  std::vector<std::unique_ptr<Sequence>> incoming;
  {
    std::lock_guard lock(mutex_);
    incoming.swap(incoming_);
  }
  for (auto& sequence : incoming) lanes_->Add(std::move(sequence));
  for (uint64_t id : lanes_->Ids()) Finish(id, reason, error);
  outbox_.Flush();
  RefuseSleepers();
}

EvictionDeps Engine::eviction_deps() const {
  return {.pool = lanes_->own_cache().pool(),
          .latent = latent_,
          .speculation = speculation_ != nullptr,
          .ranks = options_.ranks != nullptr};
}

void Engine::Commit(Sequence& sequence, int64_t tokens) {
  if (sequence.evicting != nullptr) return;  // what it stores it keeps to itself
  lanes_->cache(sequence).Commit(sequence.kv,
                                 std::span(sequence.tokens).first(static_cast<size_t>(tokens)));
}

void Engine::Emit(Sequence& sequence, TokenEvent event) {
  CompleteEvent(sequence, weight_version(), event);
  outbox_.Add(sequence.sink, std::move(event));
}

std::unique_ptr<Sequence> Engine::Forget(uint64_t id) {
  std::unique_ptr<Sequence> sequence = lanes_->Remove(id);
  if (speculation_ != nullptr) speculation_->Forget(id);
  std::lock_guard lock(mutex_);
  bounds_.Leave(id, Now());
  return sequence;
}

void Engine::Finish(uint64_t id, FinishReason reason, absl::Status error) {
  std::unique_ptr<Sequence> sequence = Forget(id);
  if (sequence != nullptr) Emit(*sequence, {.finish = reason, .error = std::move(error)});
}

int64_t Engine::weight_version() const {
  return static_cast<int64_t>(home_->model()->parameters().version());
}

void Engine::PublishGauges() {
  std::lock_guard lock(mutex_);
  weight_version_ = weight_version();
  stats_.num_requests_running = lanes_->running();
  stats_.num_requests_waiting = lanes_->waiting();
  stats_.kv_cache_usage = lanes_->kv_usage();
  stats_.num_preemptions = lanes_->preemptions();
  stats_.recomputed_tokens = lanes_->recomputed_tokens();
  stats_.prefix_cache_queries = lanes_->prefix_queries();
  stats_.prefix_cache_hits = lanes_->prefix_hits();
  if (speculation_ == nullptr) return;
  stats_.spec_decode_drafts = speculation_->stats().drafts;
  stats_.spec_decode_draft_tokens = speculation_->stats().draft_tokens;
  stats_.spec_decode_accepted_tokens = speculation_->stats().accepted_tokens;
}

void Engine::CountStep(std::span<const ScheduledChunk> chunks) {
  int64_t tokens = 0;
  for (const ScheduledChunk& chunk : chunks) tokens += chunk.tokens;
  auto bucket = std::ranges::lower_bound(kStepTokenBounds, tokens) - kStepTokenBounds.begin();
  std::lock_guard lock(mutex_);
  last_step_ = Now();
  if (chunks.empty()) return;
  ++stats_.num_steps;
  stats_.step_tokens += tokens;
  ++stats_.step_counts[static_cast<size_t>(bucket)];
}

absl::Status Engine::PublishLoad() {
  if (!load_.any()) return absl::OkStatus();
  if (options_.ranks == nullptr || !options_.ranks->routes_apart()) {
    load_.Publish(load_.counts());
    return absl::OkStatus();
  }
  const bool more = lanes_->running() + lanes_->waiting() > 0;
  if (more && Now() - load_published_ < kLoadSeconds) return absl::OkStatus();
  load_published_ = Now();
  CADRE_RETURN_IF_ERROR(Tell({.kind = StepKind::kReport}));
  CADRE_ASSIGN_OR_RETURN(const std::vector<int64_t> totals,
                         options_.ranks->SumCounts(load_.counts()));
  load_.Publish(totals);
  return absl::OkStatus();
}

}  // namespace cadre
