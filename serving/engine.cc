#include "serving/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "core/parallel_for.h"
#include "core/trace.h"
#include "serving/logit_rows.h"
#include "serving/machine_memory.h"
#include "serving/sampler.h"

namespace cadre {
namespace {

// A loop that is busy for this long without ending a step is not ready.
constexpr double kStuckSeconds = 30;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<ops::KvLayout> Layouts(const Model& model, DType dtype, int block_size) {
  std::vector<ops::KvLayout> layouts;
  for (const LayerSpec& layer : model.spec().layers) {
    layouts.push_back(KvLayoutOf(layer.attention, dtype, block_size));
  }
  return layouts;
}

absl::Status CheckMemory(const EngineOptions& options, int64_t blocks, int64_t block_bytes) {
  const int64_t available = AvailableMemory();
  if (blocks <= available / block_bytes) return absl::OkStatus();
  if (options.kv_cache_memory_bytes > 0) {
    return InvalidArgument("kv_cache_memory_bytes: {}, {} bytes of memory are available",
                           options.kv_cache_memory_bytes, available);
  }
  return ResourceExhausted("the KV cache takes {} bytes, {} bytes of memory are available",
                           blocks * block_bytes, available);
}

}  // namespace

ops::KvLayout KvLayoutOf(const AttentionSpec& spec, DType dtype, int block_size) {
  const bool latent = spec.latent.kv_rank > 0;
  return {.dtype = ops::KvPoolDType(dtype),
          .kv_heads = static_cast<int>(latent ? spec.heads : spec.kv_heads),
          .key_dim = static_cast<int>(spec.head_dim),
          .value_dim = static_cast<int>(spec.value_dim),
          .block_size = block_size};
}

Engine::Engine(Model& model, const EngineOptions& options) : model_(model), options_(options) {
  ctx_ = {.allocator = &allocator_,
          .threads = options.threads,
          .parameters = &model.parameters(),
          .packed = &packed_,
          .trace = options.trace};
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(Model& model, const EngineOptions& options) {
  const int64_t model_context = model.decoder().max_position();
  const int64_t context = options.max_model_len > 0 ? options.max_model_len : model_context;
  if (context > model_context) {
    return InvalidArgument("max_model_len: {}, the model has {} positions", context, model_context);
  }
  if (options.block_size % 16 != 0 || options.block_size <= 0) {
    return InvalidArgument("block_size: {}, a multiple of 16 is needed", options.block_size);
  }
  std::unique_ptr<Engine> engine(new Engine(model, options));
  auto layouts = Layouts(model, model.dtype(), options.block_size);
  const auto block_bytes = static_cast<int64_t>(KvBlockPool::BytesPerBlock(layouts));
  const int64_t wanted = (context + options.block_size) / options.block_size * options.max_num_seqs;
  const int64_t budget =
      options.kv_cache_memory_bytes > 0 ? options.kv_cache_memory_bytes : PhysicalMemory() / 4;
  const int64_t blocks = options.kv_cache_memory_bytes > 0 ? budget / block_bytes
                                                           : std::min(wanted, budget / block_bytes);
  if (blocks < 1) {
    return InvalidArgument("kv_cache_memory_bytes: {}, one block of {} tokens takes {}", budget,
                           options.block_size, block_bytes);
  }
  CADRE_RETURN_IF_ERROR(CheckMemory(options, blocks, block_bytes));
  engine->pool_ = std::make_unique<KvBlockPool>(engine->allocator_, std::move(layouts), blocks);
  engine->scheduler_ = std::make_unique<Scheduler>(
      SchedulerOptions{.max_num_seqs = options.max_num_seqs,
                       .max_num_batched_tokens = options.max_num_batched_tokens,
                       .max_context = context},
      *engine->pool_);
  engine->options_.max_model_len = context;
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
  // Admissible reads what Create fixed, so any thread may call it.
  for (const GenerationRequest& request : requests) {
    const int64_t tokens =
        request.prompt == nullptr ? 0 : static_cast<int64_t>(request.prompt->size());
    CADRE_RETURN_IF_ERROR(scheduler_->Admissible(tokens, request.sampling));
    for (int32_t id : *request.prompt) {
      if (id < 0 || id >= model_.spec().vocab) {
        return InvalidArgument("prompt: token id {}, allowed are 0 to {}", id,
                               model_.spec().vocab - 1);
      }
    }
  }
  std::lock_guard lock(mutex_);
  if (stopping_) return Unavailable("the engine is stopping");
  const size_t places =
      static_cast<size_t>(options_.max_queue_size) + static_cast<size_t>(options_.max_num_seqs);
  if (ids_.size() + requests.size() > places) {
    return ResourceExhausted("queue full: {} sequences run or wait, {} came, allowed are {}",
                             ids_.size(), requests.size(), places);
  }
  std::unordered_set<uint64_t> fresh;
  for (const GenerationRequest& request : requests) {
    if (ids_.contains(request.id) || !fresh.insert(request.id).second) {
      return InvalidArgument("request id {} is in use", request.id);
    }
  }
  for (GenerationRequest& request : requests) {
    auto sequence = std::make_unique<Sequence>();
    sequence->tokens = *request.prompt;
    sequence->request = std::move(request);
    sequence->sink = sink;
    sequence->submitted = Now();
    ids_.insert(sequence->request.id);
    incoming_.push_back(std::move(sequence));
  }
  wake_.notify_one();
  return absl::OkStatus();
}

void Engine::Cancel(uint64_t id) {
  std::lock_guard lock(mutex_);
  if (!ids_.contains(id)) return;
  cancels_.push_back(id);
  wake_.notify_one();
}

ModelInfo Engine::Info() const {
  std::lock_guard lock(mutex_);
  return {.max_context = static_cast<int>(options_.max_model_len),
          .vocab_size = static_cast<int>(model_.spec().vocab),
          .weight_version = weight_version_};
}

EngineHealth Engine::Health() const {
  std::lock_guard lock(mutex_);
  EngineHealth health{.ready = true, .seconds_since_step = Now() - last_step_};
  if (stopping_) {
    health.ready = false;
    health.reason = "the engine is stopping";
  } else if (!idle_ && health.seconds_since_step > kStuckSeconds) {
    health.ready = false;
    health.reason = fmt::format("no step ended for {:.0f} s", health.seconds_since_step);
  }
  return health;
}

EngineStats Engine::Stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.num_requests_waiting += static_cast<int>(incoming_.size());
  return stats;
}

bool Engine::TakeInput() {
  std::vector<std::unique_ptr<Sequence>> incoming;
  std::vector<uint64_t> cancels;
  {
    std::unique_lock lock(mutex_);
    idle_ = scheduler_->running() + scheduler_->waiting() == 0;
    wake_.wait(lock,
               [this] { return stopping_ || !idle_ || !incoming_.empty() || !cancels_.empty(); });
    if (idle_) last_step_ = Now();
    idle_ = false;
    if (stopping_) return false;
    incoming.swap(incoming_);
    cancels.swap(cancels_);
  }
  for (auto& sequence : incoming) scheduler_->Add(std::move(sequence));
  for (uint64_t id : cancels) Finish(id, FinishReason::kCancelled);
  return true;
}

void Engine::Loop() {
  if (options_.trace != nullptr) options_.trace->NameThread("engine");
  while (TakeInput()) {
    std::vector<ScheduledChunk> plan = scheduler_->Plan(Now());
    PublishGauges();  // a long step must not hide what it runs
    if (!plan.empty()) Step(plan);
    CountStep(plan);
    PublishGauges();
    Flush();
  }
  std::vector<std::unique_ptr<Sequence>> incoming;
  {
    std::lock_guard lock(mutex_);
    incoming.swap(incoming_);
  }
  for (auto& sequence : incoming) scheduler_->Add(std::move(sequence));
  for (uint64_t id : scheduler_->Ids()) Finish(id, FinishReason::kCancelled);
  Flush();
}

Batch Engine::MakeBatch(const std::vector<ScheduledChunk>& plan) {
  Batch batch;
  std::vector<int32_t> ids, positions;
  size_t stride = 1;
  for (const ScheduledChunk& chunk : plan) stride = std::max(stride, chunk.sequence->blocks.size());
  block_tables_.assign(plan.size() * stride, 0);
  context_lengths_.clear();
  slots_.clear();
  batch.offsets = {0};
  for (size_t i = 0; i < plan.size(); ++i) {
    const Sequence& sequence = *plan[i].sequence;
    std::ranges::copy(sequence.blocks, block_tables_.begin() + static_cast<int64_t>(i * stride));
    for (int64_t p = sequence.computed; p < sequence.computed + plan[i].tokens; ++p) {
      ids.push_back(sequence.tokens[p]);
      positions.push_back(static_cast<int32_t>(p));
      slots_.push_back(sequence.blocks[p / options_.block_size] * int64_t{options_.block_size} +
                       p % options_.block_size);
    }
    context_lengths_.push_back(static_cast<int32_t>(sequence.computed + plan[i].tokens));
    batch.offsets.push_back(static_cast<int32_t>(ids.size()));
  }
  batch.ids = Tensor::Of<int32_t>(allocator_, {static_cast<int64_t>(ids.size())}, ids);
  batch.positions = Tensor::Of<int32_t>(allocator_, {static_cast<int64_t>(ids.size())}, positions);
  batch.attention_workers = options_.attention_workers;
  for (int layer = 0; layer < pool_->layers(); ++layer) {
    batch.kv.push_back({.view = {.data = pool_->data(layer),
                                 .layout = pool_->layout(layer),
                                 .block_tables = block_tables_,
                                 .table_stride = static_cast<int64_t>(stride),
                                 .context_lengths = context_lengths_},
                        .slots = slots_});
  }
  return batch;
}

void Engine::Step(const std::vector<ScheduledChunk>& plan) {
  Batch batch = MakeBatch(plan);
  TraceScope scope(options_.trace, "step",
                   {{"sequences", batch.sequences()}, {"tokens", batch.tokens()}});
  Tensor hidden = model_.decoder().Forward(ctx_, batch).hidden.value;
  for (size_t i = 0; i < plan.size(); ++i) {
    if (plan[i].sequence->request.sampling.prompt_logprobs >= 0)
      ReportPrompt(plan[i], hidden, batch.offsets[i]);
  }
  Sample(plan, hidden);
}

// Rows of a chunk predict the prompt tokens after them. A recomputed prompt is not reported again.
void Engine::ReportPrompt(const ScheduledChunk& chunk, const Tensor& hidden, int64_t first_row) {
  Sequence& sequence = *chunk.sequence;
  TokenEvent& event = sequence.first_event;
  if (sequence.prompt_reported == 0) {
    event.prompt_logprobs.push_back({sequence.tokens[0], std::numeric_limits<float>::quiet_NaN()});
    event.prompt_top.emplace_back();
    sequence.prompt_reported = 1;
  }
  // A slice at a time, so that the logits of a long prompt never lie in memory together.
  constexpr int64_t kSlice = 64;
  const int64_t end = std::min(sequence.computed + chunk.tokens + 1, sequence.prompt_tokens());
  while (sequence.prompt_reported < end) {
    const int64_t begin = sequence.prompt_reported, count = std::min(kSlice, end - begin);
    if (begin - 1 < sequence.computed) return;
    LogitRows rows = ComputeLogits(ctx_, model_.decoder(),
                                   hidden.Narrow(first_row + begin - 1 - sequence.computed, count));
    for (int64_t i = 0; i < count; ++i) {
      const int32_t token = sequence.tokens[begin + i];
      event.prompt_logprobs.push_back({token, rows.row(i)[token] - rows.lse[i]});
      event.prompt_top.push_back(
          TopLogprobs(rows.row(i), rows.lse[i], sequence.request.sampling.prompt_logprobs));
    }
    sequence.prompt_reported += count;
  }
}

void Engine::Sample(const std::vector<ScheduledChunk>& plan, const Tensor& hidden) {
  std::vector<int64_t> rows;
  std::vector<Sequence*> sampled;
  int64_t row = 0;
  for (const ScheduledChunk& chunk : plan) {
    row += chunk.tokens;
    const bool samples = chunk.samples();
    chunk.sequence->computed += chunk.tokens;
    if (!samples) continue;
    rows.push_back(row - 1);
    sampled.push_back(chunk.sequence);
  }
  if (rows.empty()) return;
  LogitRows logits = ComputeLogits(ctx_, model_.decoder(), GatherRows(ctx_, hidden, rows));
  std::vector<int32_t> tokens(sampled.size(), -1);
  ParallelFor(ctx_, static_cast<int64_t>(sampled.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const SamplingParams& params = sampled[i]->request.sampling;
      const bool early = sampled[i]->generated() < params.min_tokens;
      tokens[i] =
          SampleToken(params, {.logits = logits.row(i),
                               .lse = logits.lse[i],
                               .position = static_cast<int64_t>(sampled[i]->tokens.size()),
                               .banned = early ? std::span<const int32_t>(params.stop_token_ids)
                                               : std::span<const int32_t>()});
    }
  });
  for (size_t i = 0; i < sampled.size(); ++i) {
    Append(*sampled[i], tokens[i], logits.row(static_cast<int64_t>(i)), logits.lse[i]);
  }
}

FinishReason Engine::FinishOf(const Sequence& sequence, int32_t token) const {
  const SamplingParams& params = sequence.request.sampling;
  if (std::ranges::binary_search(params.stop_token_ids, token)) return FinishReason::kStop;
  const bool full = static_cast<int64_t>(sequence.tokens.size()) >= options_.max_model_len;
  return sequence.generated() >= params.max_tokens || full ? FinishReason::kLength
                                                           : FinishReason::kNone;
}

void Engine::Append(Sequence& sequence, int32_t token, std::span<const float> logits, float lse) {
  const SamplingParams& params = sequence.request.sampling;
  if (sequence.first_token == 0) sequence.first_token = Now();
  TokenEvent event;
  if (params.max_tokens == 0) {
    event.finish = FinishReason::kLength;
  } else {
    sequence.tokens.push_back(token);
    event.token = token;
    if (params.logprobs >= 0) {
      event.logprob = logits[token] - lse;
      event.top = TopLogprobs(logits, lse, params.logprobs);
    }
    event.finish = FinishOf(sequence, token);
  }
  const FinishReason finish = event.finish;
  const uint64_t id = sequence.request.id;
  Emit(sequence, std::move(event));
  if (finish == FinishReason::kNone) return;
  scheduler_->Remove(id);
  std::lock_guard lock(mutex_);
  ids_.erase(id);
}

void Engine::Emit(Sequence& sequence, TokenEvent event) {
  event.request_id = sequence.request.id;
  event.weight_version = static_cast<int64_t>(model_.parameters().version());
  if (!sequence.started) {
    event.prompt_logprobs = std::move(sequence.first_event.prompt_logprobs);
    event.prompt_top = std::move(sequence.first_event.prompt_top);
    sequence.started = true;
  }
  if (event.finish != FinishReason::kNone && sequence.scheduled > 0) {
    event.queue_seconds = sequence.scheduled - sequence.submitted;
    if (sequence.first_token > 0) event.prefill_seconds = sequence.first_token - sequence.scheduled;
  }
  auto it = std::ranges::find(outbox_, sequence.sink, &decltype(outbox_)::value_type::first);
  if (it == outbox_.end()) it = outbox_.insert(outbox_.end(), {sequence.sink, {}});
  it->second.push_back(std::move(event));
}

void Engine::Finish(uint64_t id, FinishReason reason) {
  std::unique_ptr<Sequence> sequence = scheduler_->Remove(id);
  if (sequence != nullptr) Emit(*sequence, {.finish = reason});
  std::lock_guard lock(mutex_);
  ids_.erase(id);
}

void Engine::Flush() {
  for (auto& [sink, events] : outbox_) sink->OnStep(std::move(events));
  outbox_.clear();
}

void Engine::PublishGauges() {
  std::lock_guard lock(mutex_);
  weight_version_ = static_cast<int64_t>(model_.parameters().version());
  stats_.num_requests_running = scheduler_->running();
  stats_.num_requests_waiting = scheduler_->waiting();
  stats_.kv_cache_usage =
      1.0 - static_cast<double>(pool_->free_blocks()) / static_cast<double>(pool_->blocks());
  stats_.num_preemptions = scheduler_->preemptions();
}

void Engine::CountStep(const std::vector<ScheduledChunk>& plan) {
  int64_t tokens = 0;
  for (const ScheduledChunk& chunk : plan) tokens += chunk.tokens;
  auto bucket = std::ranges::lower_bound(kStepTokenBounds, tokens) - kStepTokenBounds.begin();
  std::lock_guard lock(mutex_);
  last_step_ = Now();
  if (plan.empty()) return;
  ++stats_.num_steps;
  stats_.step_tokens += tokens;
  ++stats_.step_counts[static_cast<size_t>(bucket)];
}

}  // namespace cadre
