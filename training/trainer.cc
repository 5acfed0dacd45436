#include "training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <numeric>

#include <spdlog/spdlog.h>

#include "core/config.h"
#include "core/file.h"
#include "core/process_memory.h"
#include "model/chat_template.h"
#include "model/initialize.h"
#include "model/model_cost.h"
#include "model/tokenizer.h"
#include "parallel/activity.h"
#include "parallel/agree.h"
#include "training/checkpoint_weights.h"
#include "training/evaluate.h"
#include "training/gemm_peak.h"
#include "training/gradient_norm.h"
#include "training/layout_needs.h"
#include "training/output_lock.h"
#include "training/ranks_at_once.h"
#include "training/shared_folder.h"
#include "training/training_data.h"

namespace cadre {
namespace {

constexpr char kSaving[] = "saving a checkpoint";

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

absl::Status CheckConfig(const config::TrainConfig& config) {
  if (config.global_batch_size() % config.micro_batch_size() != 0) {
    return InvalidArgument("global_batch_size: {} is not a multiple of micro_batch_size {}",
                           config.global_batch_size(), config.micro_batch_size());
  }
  if (config.device() != config::DEVICE_CPU) {
    return Unimplemented("device: cuda, training runs on the CPU so far");
  }
  std::error_code error;
  if (config.has_tokenizer() &&
      !std::filesystem::exists(config.tokenizer() + "/tokenizer.json", error)) {
    return InvalidArgument("tokenizer: {}: no tokenizer.json there", config.tokenizer());
  }
  return absl::OkStatus();
}

}  // namespace

Trainer::Trainer(const config::TrainConfig& config, const TrainerOptions& options,
                 const Layout& layout)
    : config_(config), options_(options), ranks_(options.world, layout, options.wrap_group) {
  ctx_ = {.allocator = &allocator_,
          .threads = options.threads,
          // Packed copies would be the weights that each rank was not to have.
          .packed = ranks_.gathers_weights() ? nullptr : &packed_,
          .trace = options.trace,
          .seed = config.seed(),
          .groups = ranks_.groups()};
  if (ctx_.groups != nullptr) ctx_.groups->recorder = options.recorder;
}

Trainer::~Trainer() { ranks_.Leave(); }

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const config::TrainConfig& config,
                                                         const TrainerOptions& options) {
  CADRE_RETURN_IF_ERROR(CheckConfig(config));
  const int world = options.world == nullptr ? 1 : options.world->size();
  CADRE_ASSIGN_OR_RETURN(const Layout layout, LayoutOfRun(config, world));
  std::unique_ptr<Trainer> trainer(new Trainer(config, options, layout));
  CADRE_RETURN_IF_ERROR(trainer->Open());
  return trainer;
}

absl::Status Trainer::OpenOutput() {
  const std::string checkpoints = options_.output + "/checkpoints";
  for (const std::string& folder : {options_.output, checkpoints}) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) return Unavailable("{}: cannot create: {}", folder, error.message());
  }
  CADRE_RETURN_IF_ERROR(CheckSharedFolder(ranks_.checkpoint_group(), checkpoints));
  absl::Status locked;
  if (ranks_.leader()) {
    auto lock = LockOutput(options_.output, kOutputPatience, options_.stop, *options_.log);
    locked = lock.status();
    if (locked.ok()) lock_ = *std::move(lock);
  }
  return AgreeIn(ranks_.checkpoint_group(), locked, {"output folder"});
}

absl::Status Trainer::Open() {
  measured_.program = ReadResidentMemory().now;
  CADRE_RETURN_IF_ERROR(OpenOutput());
  CADRE_RETURN_IF_ERROR(OpenModel());
  const int64_t without_data = ReadResidentMemory().now;
  CADRE_RETURN_IF_ERROR(OpenData());
  measured_.data =
      std::max<int64_t>(0, ReadResidentMemory().now - without_data) + stream_->order_bytes();
  if (validation_.has_value()) measured_.data += validation_->order_bytes();
  CADRE_RETURN_IF_ERROR(OpenState());
  CADRE_RETURN_IF_ERROR(Resume());
  CADRE_ASSIGN_OR_RETURN(
      const double ranks_at_once,
      FindRanksAtOnce(options_.world, ranks_.checkpoint_group(), options_.threads));
  if (ranks_.leader()) {
    CADRE_RETURN_IF_ERROR(WriteFileAtomic(options_.output + "/config.yaml", DumpYaml(config_)));
    CADRE_RETURN_IF_ERROR(OpenMetrics(ranks_at_once));
    PrintPlan();
  }
  return ranks_.Meet({"ready"});
}

PlanArgs Trainer::PlanOf(const DecoderSpec& spec) const {
  const World* world = options_.world;
  return {.config = config_,
          .spec = spec,
          .layout = ranks_.layout(),
          .compute = ComputeTypeOf(config_),
          .ranks_on_host = world == nullptr ? 1 : static_cast<int>(world->local_ranks().size()),
          .measured = measured_};
}

absl::Status Trainer::OpenModel() {
  const DType compute = ComputeTypeOf(config_);
  ModelOptions options{
      .dtype = compute, .gradients = true, .parts = [this](const ParamBucket& bucket) {
        return ranks_.PartsOf(bucket);
      }};
  options.decoder.frozen.assign(config_.frozen_parameters().begin(),
                                config_.frozen_parameters().end());
  options.decoder.max_position = config_.data().seq_len();
  options.decoder.part = ranks_.part();
  CADRE_ASSIGN_OR_RETURN(HfConfig hf, ModelOfRun(config_));
  CADRE_ASSIGN_OR_RETURN(const DecoderSpec spec, ResolveModelConfig(hf.model));
  CADRE_RETURN_IF_ERROR(CheckFits(PlanOf(spec), ranks_.rank()));
  if (config_.has_init_from()) {
    model_source_ = config_.init_from();
    CADRE_ASSIGN_OR_RETURN(model_, LoadModel(ctx_, config_.init_from(), options));
    ctx_.parameters = &model_->parameters();
  } else {
    CADRE_ASSIGN_OR_RETURN(model_, CreateModel(ctx_, std::move(hf), options));
    ctx_.parameters = &model_->parameters();
    InitializeParameters(ctx_, config_.seed());
  }
  tokenizer_folder_ = config_.has_tokenizer() ? config_.tokenizer() : model_source_;
  flops_per_token_ = ModelFlopsPerToken(model_->spec(), config_.data().seq_len());
  return absl::OkStatus();
}

absl::Status Trainer::OpenData() {
  std::unique_ptr<ChatTemplate> chat;
  std::unique_ptr<Tokenizer> tokenizer;
  const auto& sources = config_.data().sources();
  const bool chats = std::ranges::any_of(sources, [](const config::DataSource& source) {
    return source.kind() == config::SOURCE_KIND_CHAT;
  });
  if (chats && !tokenizer_folder_.empty()) {
    CADRE_ASSIGN_OR_RETURN(chat, ChatTemplate::Load(tokenizer_folder_));
    CADRE_ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(tokenizer_folder_));
  }
  CADRE_ASSIGN_OR_RETURN(TrainingData data, OpenTrainingData(config_.data(), model_->spec().vocab,
                                                             {chat.get(), tokenizer.get()}));
  stream_ = std::move(data.train);
  validation_ = std::move(data.validation);
  return absl::OkStatus();
}

absl::Status Trainer::OpenState() {
  ParameterStore& store = model_->parameters();
  ranks_.Serve(store, {.allocator = &allocator_, .prefetch = config_.parallel().zero_prefetch()});
  const std::vector<Shard> owned = ranks_.OwnedShards();
  CADRE_ASSIGN_OR_RETURN(optimizer_, MakeOptimizer(config_.optimizer(), store, allocator_, owned));
  optimizer_->AdoptWeights();
  chunks_ = TrainableChunks(store, ranks_.SoleShards());
  CADRE_ASSIGN_OR_RETURN(
      schedule_,
      LrSchedule::Create(config_.lr_schedule(), config_.optimizer().lr(), config_.train_steps()));
  guard_.emplace(config_.bad_step());
  step_runner_.emplace(*model_, config_, ranks_.layout());
  step_runner_->InspectRouting(options_.inspect_routing);
  CADRE_ASSIGN_OR_RETURN(plan_, PlanRank(PlanOf(model_->spec()), ranks_.rank()));
  CheckpointSaverOptions options{
      .root = options_.output + "/checkpoints",
      .keep_last = config_.checkpoint().keep_last(),
      .async = config_.checkpoint().async(),
      .max_shard_bytes = config_.checkpoint().max_shard_bytes(),
      .save_weights =
          HfSaveWeights(*model_, {.type = WeightType(model_->dtype()),
                                  .max_shard_bytes = config_.checkpoint().max_shard_bytes(),
                                  .tokenizer_folder = tokenizer_folder_}),
      .group = ranks_.checkpoint_group()};
  saver_ = std::make_unique<CheckpointSaver>(
      std::move(options), store, StateOf(store, *optimizer_, owned, ranks_.SoleShards()),
      allocator_);
  return absl::OkStatus();
}

absl::StatusOr<bool> Trainer::Stopping() {
  return ranks_.Any(options_.stop != nullptr && options_.stop->load(), {"stop"});
}

absl::Status Trainer::Run() {
  bool stopping = false;
  if (ranks_.leader() && step_ >= config_.train_steps()) {
    Log().info("step {} of {}: nothing is left to do", step_, config_.train_steps());
  }
  while (step_ < config_.train_steps()) {
    CADRE_ASSIGN_OR_RETURN(stopping, Stopping());
    if (stopping) break;
    CADRE_ASSIGN_OR_RETURN(StepReport report, Step());
    const config::EvalConfig& eval = config_.eval();
    const bool last = step_ == config_.train_steps();
    if (validation_.has_value() && eval.interval() > 0 && (last || step_ % eval.interval() == 0)) {
      CADRE_ASSIGN_OR_RETURN(report.eval_loss, Evaluate());
      evaluations_[step_] = *report.eval_loss;
    }
    if (ranks_.leader()) Report(report);
    CADRE_RETURN_IF_ERROR(MaybeSave(last));
  }
  if (stopping) {
    if (ranks_.leader()) Log().info("stopping at step {}, saving", step_);
    CADRE_RETURN_IF_ERROR(MaybeSave(true));
  }
  if (progress_.has_value()) progress_->Finish();
  RecordActivity(ctx_, kSaving, -1);
  const absl::Status saved = saver_->Wait();
  CADRE_RETURN_IF_ERROR(ranks_.Meet({"end"}));
  ReportMemory();
  // What the disk lost is no reason to give the run up, as data that cannot be used is.
  return absl::IsDataLoss(saved) ? Unavailable("{}", Message(saved)) : saved;
}

absl::StatusOr<StepBatches> Trainer::ReadBatches() {
  CADRE_ASSIGN_OR_RETURN(StepBatches batches, ReadStep(*stream_, step_,
                                                       {.global = config_.global_batch_size(),
                                                        .micro = config_.micro_batch_size(),
                                                        .rank = ranks_.data_rank(),
                                                        .ranks = ranks_.data_size()}));
  int64_t counts[] = {batches.tokens, batches.loss_tokens, batches.sequences, batches.microbatches};
  CADRE_RETURN_IF_ERROR(ranks_.SumOverSamples(counts, {"batch"}));
  batches.tokens = counts[0];
  batches.loss_tokens = counts[1];
  batches.sequences = counts[2];
  batches.microbatches = counts[3];
  return batches;
}

absl::Status Trainer::SumLosses(StepLosses* losses) {
  double sums[] = {losses->cross_entropy, losses->z_loss, losses->router};
  CADRE_RETURN_IF_ERROR(ranks_.SumOverTargets(std::span(sums, 2), {"loss"}));
  CADRE_RETURN_IF_ERROR(ranks_.SumOverTokens(std::span(sums + 2, 1), {"router loss"}));
  CADRE_RETURN_IF_ERROR(ranks_.SumOverStages(sums, {"losses"}));
  *losses = {.cross_entropy = sums[0], .z_loss = sums[1], .router = sums[2]};
  return absl::OkStatus();
}

absl::Status Trainer::ComputeGradients(const StepBatches& batches, StepReport* report) {
  ranks_.BeginPasses(ShardedWeights::Passes::kTraining);
  CADRE_ASSIGN_OR_RETURN(report->losses, step_runner_->Run(ctx_, batches));
  CADRE_RETURN_IF_ERROR(ranks_.FinishGradients());
  if (options_.inspect_gradients) {
    options_.inspect_gradients(step_, model_->parameters(), ranks_.OwnedShards());
  }
  CADRE_RETURN_IF_ERROR(SumLosses(&report->losses));
  std::vector<int64_t> counts = step_runner_->ExpertCounts();
  CADRE_RETURN_IF_ERROR(SumDropped(counts, report));
  CADRE_RETURN_IF_ERROR(ranks_.SumOverTokens(std::span(counts), {"expert counts"}));
  step_runner_->SetExpertCounts(counts);
  CADRE_ASSIGN_OR_RETURN(
      report->expert_load,
      ranks_.MostOfStages(step_runner_->ExpertLoadMaxOverMean(), {"expert load"}));
  CADRE_ASSIGN_OR_RETURN(
      const double squared,
      ranks_.SumOverWorld(SquaredNorm(ctx_, model_->parameters(), chunks_), {"gradient norm"}));
  report->gradient_norm = std::sqrt(squared);
  return absl::OkStatus();
}

absl::Status Trainer::SumDropped(std::span<const int64_t> own_counts, StepReport* report) {
  if (config_.moe().capacity_factor() == 0) return absl::OkStatus();
  const auto own =
      static_cast<double>(std::accumulate(own_counts.begin(), own_counts.end(), int64_t{0}));
  CADRE_ASSIGN_OR_RETURN(const double chosen, ranks_.SumOverWorld(own, {"expert choices"}));
  CADRE_ASSIGN_OR_RETURN(
      const double dropped,
      ranks_.SumOverWorld(static_cast<double>(step_runner_->dropped()), {"dropped choices"}));
  report->dropped_share = chosen == 0 ? 0.0 : dropped / chosen;
  return absl::OkStatus();
}

absl::Status Trainer::Update(const StepReport& report) {
  TraceScope scope(options_.trace, "optimizer");
  RecordActivity(ctx_, "optimizer", -1);
  optimizer_->Step(ctx_, {.lr = report.lr,
                          .gradient_scale = ClipFactor(report.gradient_norm,
                                                       config_.optimizer().clip_grad_norm())});
  step_runner_->UpdateRouterBiases(ctx_);
  return ranks_.GatherWeights();
}

absl::StatusOr<Trainer::StepReport> Trainer::Step() {
  TraceScope scope(options_.trace, "step", {{"step", step_}});
  const double start = Now();
  ctx_.step = step_;
  if (options_.recorder != nullptr) options_.recorder->SetStep(step_);
  RecordActivity(ctx_, "reading the batch", -1);
  CADRE_ASSIGN_OR_RETURN(const StepBatches batches, ReadBatches());
  StepReport report{.lr = schedule_->At(step_), .tokens = batches.tokens};
  CADRE_RETURN_IF_ERROR(ComputeGradients(batches, &report));
  losses_.push_back(report.losses.cross_entropy);
  CADRE_RETURN_IF_ERROR(Judge(batches, &report));
  if (report.applied) CADRE_RETURN_IF_ERROR(Update(report));
  ++step_;
  tokens_ += batches.tokens;
  report.seconds = Now() - start;
  return report;
}

absl::Status Trainer::Judge(const StepBatches& batches, StepReport* report) {
  const StepVerdict verdict = guard_->Judge(step_, report->losses.total(), report->gradient_norm);
  if (!verdict.bad) return absl::OkStatus();
  Log().warn("step {}: {}", step_, verdict.reason);
  if (config_.bad_step().dump() && ranks_.first_with_samples()) {
    BadStepDump dump{.step = step_,
                     .loss = report->losses.total(),
                     .gradient_norm = report->gradient_norm,
                     .reason = verdict.reason,
                     .samples = batches.samples};
    for (const PackedBatch& packed : batches.micro) {
      for (size_t r = 0; r + 1 < packed.row_offsets.size(); ++r) {
        const int64_t begin = packed.row_offsets[r], end = packed.row_offsets[r + 1];
        dump.ids.emplace_back(packed.ids.begin() + begin, packed.ids.begin() + end);
        dump.targets.emplace_back(packed.targets.begin() + begin, packed.targets.begin() + end);
      }
    }
    std::string folder = options_.output + "/bad_steps";
    if (ranks_.data_rank() > 0) folder += fmt::format("/data-rank-{}", ranks_.data_rank());
    auto written = WriteBadStep(folder, dump);
    if (!written.ok()) Log().warn("{}", Message(written.status()));
  }
  if (verdict.action == StepVerdict::Action::kStop) {
    CADRE_RETURN_IF_ERROR(MaybeSave(true));
    CADRE_RETURN_IF_ERROR(saver_->Wait());
    return DataLoss("step {}: {}; stopped by bad_step", step_, verdict.reason);
  }
  report->applied = verdict.action == StepVerdict::Action::kApply;
  return absl::OkStatus();
}

absl::Status Trainer::MaybeSave(bool last) {
  // A failed save costs that checkpoint, never the run: the disk may have room again by the next.
  // All ranks look at the last chance alike: they have agreed on how a save ended once it has.
  const int64_t interval = config_.checkpoint().interval();
  const bool due = last || (interval > 0 && step_ % interval == 0);
  if (due) RecordActivity(ctx_, kSaving, -1);
  if (absl::Status earlier = last ? saver_->Wait() : saver_->Poll(); !earlier.ok()) {
    if (ranks_.leader()) Log().error("{}", Message(earlier));
    saved_ = -1;
  }
  if (!due || saved_ == step_) return absl::OkStatus();
  TraceScope scope(options_.trace, "checkpoint");
  saver_->Save(ctx_, {.step = step_,
                      .weight_version = model_->parameters().version(),
                      .updates = optimizer_->updates(),
                      .seed = config_.seed(),
                      .data_seed = config_.data().seed(),
                      .tokens = tokens_,
                      .guard = guard_->state(),
                      .config = DumpYaml(config_),
                      .model_config = DumpYaml(model_->config().model)});
  saved_ = step_;
  return absl::OkStatus();
}

absl::StatusOr<double> Trainer::Evaluate() {
  TraceScope scope(options_.trace, "evaluate");
  const int64_t micro = config_.micro_batch_size();
  const int64_t rows =
      config_.eval().batches() == 0 ? validation_->epoch_rows() : config_.eval().batches() * micro;
  const EvaluationPart part{
      .count = std::min(rows, validation_->epoch_rows()),
      .micro = micro,
      .rank = ranks_.data_rank(),
      .ranks = ranks_.data_size(),
      .begin_passes = [this] { ranks_.BeginPasses(ShardedWeights::Passes::kEvaluation); }};
  CADRE_ASSIGN_OR_RETURN(double loss,
                         EvaluateLoss(ctx_, *model_, *validation_, part, ranks_.layout()));
  CADRE_RETURN_IF_ERROR(ranks_.EndPasses());
  CADRE_RETURN_IF_ERROR(ranks_.SumOverTargets(std::span(&loss, 1), {"evaluate"}));
  CADRE_RETURN_IF_ERROR(ranks_.SumOverStages(std::span(&loss, 1), {"evaluate"}));
  return loss;
}

}  // namespace cadre
