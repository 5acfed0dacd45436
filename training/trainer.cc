#include "training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include <spdlog/spdlog.h>

#include "core/config.h"
#include "core/file.h"
#include "core/process_memory.h"
#include "model/chat_template.h"
#include "model/initialize.h"
#include "model/model_cost.h"
#include "model/tokenizer.h"
#include "training/checkpoint_weights.h"
#include "training/gemm_peak.h"
#include "training/gradient_norm.h"
#include "training/training_data.h"

namespace cadre {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

DType ComputeDType(config::ComputeDType dtype) {
  switch (dtype) {
    case config::COMPUTE_DTYPE_BF16:
      return DType::kBF16;
    case config::COMPUTE_DTYPE_F32:
      return DType::kF32;
    case config::COMPUTE_DTYPE_F64:
      return DType::kF64;
  }
  __builtin_unreachable();
}

absl::Status CheckConfig(const config::TrainConfig& config) {
  const int given =
      int{config.has_model()} + int{config.has_model_path()} + int{config.has_init_from()};
  if (given != 1) {
    return InvalidArgument(
        "model, model_path, init_from: {} of them are given, exactly one is needed", given);
  }
  if (config.global_batch_size() % config.micro_batch_size() != 0) {
    return InvalidArgument("global_batch_size: {} is not a multiple of micro_batch_size {}",
                           config.global_batch_size(), config.micro_batch_size());
  }
  if (config.device() != config::DEVICE_CPU) {
    return Unimplemented("device: cuda, training runs on the CPU so far");
  }
  return absl::OkStatus();
}

// What the data cursor means: a resumed run must see the samples that the first one would have.
absl::Status CheckSameData(const std::string& saved_yaml, const config::TrainConfig& now) {
  config::TrainConfig saved;
  CADRE_RETURN_IF_ERROR(ParseYaml(saved_yaml, "the checkpoint's configuration", &saved));
  auto differ = [](const std::string& field, auto was, auto is) {
    return InvalidArgument(
        "{}: {}, the checkpoint was trained with {}; another order of the data "
        "needs an output folder of its own (init_from takes the weights over)",
        field, is, was);
  };
  if (saved.seed() != now.seed()) return differ("seed", saved.seed(), now.seed());
  if (saved.global_batch_size() != now.global_batch_size()) {
    return differ("global_batch_size", saved.global_batch_size(), now.global_batch_size());
  }
  const config::DataConfig &was = saved.data(), &is = now.data();
  if (was.seed() != is.seed()) return differ("data.seed", was.seed(), is.seed());
  if (was.seq_len() != is.seq_len()) return differ("data.seq_len", was.seq_len(), is.seq_len());
  if (was.shuffle() != is.shuffle()) return differ("data.shuffle", was.shuffle(), is.shuffle());
  if (was.sources_size() != is.sources_size()) {
    return differ("data.sources", was.sources_size(), is.sources_size());
  }
  return absl::OkStatus();
}

}  // namespace

Trainer::Trainer(const config::TrainConfig& config, const TrainerOptions& options)
    : config_(config), options_(options) {
  ctx_ = {.allocator = &allocator_,
          .threads = options.threads,
          .packed = &packed_,
          .trace = options.trace,
          .seed = config.seed()};
}

Trainer::~Trainer() = default;

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const config::TrainConfig& config,
                                                         const TrainerOptions& options) {
  CADRE_RETURN_IF_ERROR(CheckConfig(config));
  std::unique_ptr<Trainer> trainer(new Trainer(config, options));
  CADRE_RETURN_IF_ERROR(trainer->Open());
  return trainer;
}

absl::Status Trainer::Open() {
  measured_.program = ReadResidentMemory().now;
  std::error_code error;
  std::filesystem::create_directories(options_.output, error);
  if (error) return Unavailable("{}: cannot create: {}", options_.output, error.message());
  CADRE_RETURN_IF_ERROR(OpenModel());
  const int64_t without_data = ReadResidentMemory().now;
  CADRE_RETURN_IF_ERROR(OpenData());
  measured_.data =
      std::max<int64_t>(0, ReadResidentMemory().now - without_data) + stream_->order_bytes();
  if (validation_.has_value()) measured_.data += validation_->order_bytes();
  CADRE_RETURN_IF_ERROR(OpenState());
  CADRE_RETURN_IF_ERROR(Resume());
  CADRE_RETURN_IF_ERROR(WriteFileAtomic(options_.output + "/config.yaml", DumpYaml(config_)));
  CADRE_RETURN_IF_ERROR(OpenMetrics());
  PrintPlan();
  return absl::OkStatus();
}

absl::Status Trainer::OpenModel() {
  const DType compute = ComputeDType(config_.dtype());
  ModelOptions options{.dtype = compute, .gradients = true};
  options.decoder.frozen.assign(config_.frozen_parameters().begin(),
                                config_.frozen_parameters().end());
  options.decoder.max_position = config_.data().seq_len();
  if (config_.has_init_from()) {
    model_source_ = config_.init_from();
    CADRE_ASSIGN_OR_RETURN(model_, LoadModel(ctx_, config_.init_from(), options));
    ctx_.parameters = &model_->parameters();
  } else {
    HfConfig hf{.model = config_.model()};
    if (config_.has_model_path()) {
      CADRE_ASSIGN_OR_RETURN(hf, LoadHfConfig(config_.model_path()));
    }
    CADRE_RETURN_IF_ERROR(CheckFits(hf.model, compute));
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
  CADRE_ASSIGN_OR_RETURN(optimizer_, MakeOptimizer(config_.optimizer(), store, allocator_));
  optimizer_->AdoptWeights();
  chunks_ = TrainableChunks(store);
  CADRE_ASSIGN_OR_RETURN(
      schedule_,
      LrSchedule::Create(config_.lr_schedule(), config_.optimizer().lr(), config_.train_steps()));
  guard_.emplace(config_.bad_step());
  step_runner_.emplace(*model_, config_, config_.global_batch_size() / config_.micro_batch_size());
  plan_ = PlanTraining(config_, model_->spec(), store, ComputeDType(config_.dtype()), measured_);
  CheckpointSaverOptions options{
      .root = options_.output + "/checkpoints",
      .keep_last = config_.checkpoint().keep_last(),
      .async = config_.checkpoint().async(),
      .save_weights = HfSaveWeights(*model_, allocator_,
                                    {.type = WeightType(model_->dtype()),
                                     .max_shard_bytes = config_.checkpoint().max_shard_bytes(),
                                     .tokenizer_folder = tokenizer_folder_})};
  saver_ = std::make_unique<CheckpointSaver>(std::move(options), store, *optimizer_, allocator_);
  return absl::OkStatus();
}

// A run that begins at step 0 in a used folder sets what it finds aside, so that no later resume
// mixes the two.
absl::Status Trainer::StartAnew(const std::string& root) {
  if (!std::filesystem::exists(root)) return absl::OkStatus();
  CADRE_ASSIGN_OR_RETURN(auto abandoned, AbandonLaterCheckpoints(root, -1));
  for (const std::string& name : abandoned) options_.log->warn("{}/{} was set aside", root, name);
  return absl::OkStatus();
}

absl::Status Trainer::Resume() {
  const std::string root = options_.output + "/checkpoints";
  if (!options_.resume) return StartAnew(root);
  CADRE_ASSIGN_OR_RETURN(auto found, FindGoodCheckpoint(root, [this](const std::string& line) {
                           options_.log->warn("{}", line);
                         }));
  if (!found.has_value()) {
    CADRE_ASSIGN_OR_RETURN(auto all, ListCheckpoints(root));
    if (all.empty()) return absl::OkStatus();
    return DataLoss("{}: none of its {} checkpoints is whole; --resume never sets them aside", root,
                    all.size());
  }
  const CheckpointState& state = found->manifest.state;
  CADRE_RETURN_IF_ERROR(CheckSameData(state.config, config_));
  CADRE_RETURN_IF_ERROR(LoadCheckpoint(*found, DumpYaml(model_->config().model),
                                       HfLoadWeights(ctx_, *model_), model_->parameters(),
                                       *optimizer_));
  model_->parameters().RestoreVersion(state.weight_version);
  step_ = saved_ = state.step;
  tokens_ = state.tokens;
  guard_->Restore(state.guard);
  CADRE_ASSIGN_OR_RETURN(auto abandoned, AbandonLaterCheckpoints(root, step_));
  for (const std::string& name : abandoned) options_.log->warn("{}/{} was set aside", root, name);
  options_.log->info("resumed from {} at step {}", found->path, step_);
  return absl::OkStatus();
}

absl::Status Trainer::OpenMetrics() {
  CADRE_ASSIGN_OR_RETURN(
      metrics_, JsonlWriter::Open(options_.output + "/metrics.jsonl", step_ > 0 ? step_ : -1));
  if (config_.log().tensorboard()) {
    CADRE_ASSIGN_OR_RETURN(tensorboard_, TensorBoardWriter::Create(options_.output, "cadre"));
  }
  if (options_.progress != nullptr) {
    progress_.emplace(ProgressOptions{.file = options_.progress,
                                      .terminal = options_.terminal,
                                      .columns = options_.columns,
                                      .total_steps = config_.train_steps(),
                                      .line_steps = config_.log().interval()});
  }
  peak_flops_ = MeasureGemmPeak(ctx_, ComputeDType(config_.dtype()));
  return absl::OkStatus();
}

void Trainer::PrintPlan() const {
  const ParameterCounts counts = CountParameters(model_->spec());
  options_.log->info("{}: {} parameters, {} active per token", model_->spec().model_type,
                     FormatCount(static_cast<double>(counts.total)),
                     FormatCount(static_cast<double>(counts.active)));
  options_.log->info("{}", plan_.ToString());
  options_.log->info(
      "data: {} tokens an epoch, {} tokens a step; matrix products peak at {:.0f} GFLOP/s",
      FormatCount(static_cast<double>(stream_->epoch_tokens())),
      FormatCount(static_cast<double>(config_.global_batch_size()) * config_.data().seq_len()),
      peak_flops_ / 1e9);
}

absl::Status Trainer::Run() {
  while (step_ < config_.train_steps() && !Stopping()) {
    CADRE_ASSIGN_OR_RETURN(StepReport report, Step());
    const config::EvalConfig& eval = config_.eval();
    const bool last = step_ == config_.train_steps();
    if (validation_.has_value() && eval.interval() > 0 && (last || step_ % eval.interval() == 0)) {
      CADRE_ASSIGN_OR_RETURN(report.eval_loss, Evaluate());
    }
    Report(report);
    CADRE_RETURN_IF_ERROR(MaybeSave(last));
  }
  if (Stopping() && step_ < config_.train_steps()) {
    options_.log->info("stopping at step {}, saving", step_);
    CADRE_RETURN_IF_ERROR(MaybeSave(true));
  }
  if (progress_.has_value()) progress_->Finish();
  const absl::Status saved = saver_->Wait();
  ReportMemory();
  return saved;
}

void Trainer::ReportMemory() const {
  const auto peak = static_cast<double>(ReadResidentMemory().peak);
  const auto planned = static_cast<double>(plan_.total());
  constexpr double kGiB = 1 << 30;
  options_.log->info("peak memory {:.2f} GiB resident, {:.2f} planned ({:.0f}%); {:.2f} in tensors",
                     peak / kGiB, planned / kGiB, 100 * peak / planned,
                     static_cast<double>(peak_bytes()) / kGiB);
}

absl::StatusOr<Trainer::StepReport> Trainer::Step() {
  TraceScope scope(options_.trace, "step", {{"step", step_}});
  const double start = Now();
  ctx_.step = step_;
  CADRE_ASSIGN_OR_RETURN(StepBatches batches, ReadStep(*stream_, step_, config_.global_batch_size(),
                                                       config_.micro_batch_size()));
  StepReport report{.lr = schedule_->At(step_), .tokens = batches.tokens};
  report.losses = step_runner_->Run(ctx_, batches);
  report.gradient_norm = GradientNorm(ctx_, model_->parameters(), chunks_);
  CADRE_RETURN_IF_ERROR(Judge(batches, &report));
  if (report.applied) {
    TraceScope update(options_.trace, "optimizer");
    optimizer_->Step(ctx_, {.lr = report.lr,
                            .gradient_scale = ClipFactor(report.gradient_norm,
                                                         config_.optimizer().clip_grad_norm())});
    step_runner_->UpdateRouterBiases(ctx_);
  }
  ++step_;
  tokens_ += batches.tokens;
  report.seconds = Now() - start;
  return report;
}

absl::Status Trainer::Judge(const StepBatches& batches, StepReport* report) {
  const StepVerdict verdict = guard_->Judge(step_, report->losses.total(), report->gradient_norm);
  if (!verdict.bad) return absl::OkStatus();
  options_.log->warn("step {}: {}", step_, verdict.reason);
  if (config_.bad_step().dump()) {
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
    auto written = WriteBadStep(options_.output + "/bad_steps", dump);
    if (!written.ok()) options_.log->warn("{}", Message(written.status()));
  }
  if (verdict.action == StepVerdict::Action::kStop) {
    CADRE_RETURN_IF_ERROR(MaybeSave(true));
    CADRE_RETURN_IF_ERROR(saver_->Wait());
    return DataLoss("step {}: {}; stopped by bad_step", step_, verdict.reason);
  }
  report->applied = verdict.action == StepVerdict::Action::kApply;
  return absl::OkStatus();
}

void Trainer::Report(const StepReport& report) {
  const double rate = static_cast<double>(report.tokens) / report.seconds;
  const double mfu = rate * flops_per_token_ / peak_flops_;
  std::vector<Metric> metrics = {
      {"loss", report.losses.cross_entropy},
      {"lr", report.lr},
      {"grad_norm", report.gradient_norm},
      {"tokens_per_second", rate},
      {"mfu", mfu},
      {"tokens", static_cast<double>(tokens_)},
      {"step_seconds", report.seconds},
      {"applied", report.applied ? 1.0 : 0.0},
      {"peak_resident_bytes", static_cast<double>(ReadResidentMemory().peak)},
      {"planned_bytes", static_cast<double>(plan_.total())}};
  if (report.losses.z_loss != 0) metrics.push_back({"z_loss", report.losses.z_loss});
  if (const double load = step_runner_->ExpertLoadMaxOverMean(); load > 0) {
    metrics.push_back({"router_loss", report.losses.router});
    metrics.push_back({"expert_load_max_over_mean", load});
  }
  if (report.eval_loss.has_value()) metrics.push_back({"eval_loss", *report.eval_loss});
  // A full disk costs these lines, not the run.
  absl::Status written = metrics_->Write(step_, metrics);
  if (written.ok() && tensorboard_.has_value()) written = tensorboard_->Write(step_, metrics);
  if (!written.ok()) options_.log->error("{}", Message(written));
  if (progress_.has_value()) {
    progress_->Update(
        {.step = step_, .loss = report.losses.cross_entropy, .tokens_per_second = rate, .mfu = mfu},
        Now());
  }
  if (report.eval_loss.has_value()) {
    if (progress_.has_value()) progress_->Finish();
    options_.log->info("step {}: held-out loss {:.4f}, perplexity {:.2f}", step_, *report.eval_loss,
                       std::exp(*report.eval_loss));
  }
}

absl::Status Trainer::MaybeSave(bool last) {
  // A failed save costs that checkpoint, never the run: the disk may have room again by the next.
  if (absl::Status earlier = saver_->Poll(); !earlier.ok())
    options_.log->error("{}", Message(earlier));
  const int64_t interval = config_.checkpoint().interval();
  const bool due = last || (interval > 0 && step_ % interval == 0);
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
  return EvaluateLoss(ctx_, *model_, *validation_, 0, std::min(rows, validation_->epoch_rows()),
                      micro);
}

}  // namespace cadre
