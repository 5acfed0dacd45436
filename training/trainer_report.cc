// What a run tells: its plan, metrics, progress and memory.
#include <algorithm>
#include <cmath>

#include <spdlog/spdlog.h>

#include "core/process_memory.h"
#include "model/model_cost.h"
#include "parallel/layout_text.h"
#include "training/gemm_peak.h"
#include "training/trainer.h"

namespace cadre {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

absl::Status Trainer::OpenMetrics(double ranks_at_once) {
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
  peak_flops_ = MeasureGemmPeak(ctx_, model_->dtype()) * ranks_at_once;
  return absl::OkStatus();
}

void Trainer::PrintPlan() const {
  const ParameterCounts counts = CountParameters(model_->spec());
  const DecoderSpec& spec = model_->spec();
  const bool experts = std::ranges::any_of(spec.layers, &LayerSpec::is_moe);
  options_.log->info(
      "{}: {} parameters{}", spec.model_type, FormatCount(static_cast<double>(counts.total)),
      experts
          ? fmt::format(", {} active per token", FormatCount(static_cast<double>(counts.active)))
          : "");
  if (ranks_.layout().world() > 1) {
    options_.log->info("{}", LayoutText(ranks_.layout(), experts));
  }
  const int64_t length = config_.data().seq_len(), context = spec.max_position;
  if (length > context) {
    options_.log->warn(
        "data.seq_len {} is over the model's max_position_embeddings {}, which is what servers of "
        "it will take",
        length, context);
  }
  options_.log->info("{}", plan_.ToString());
  options_.log->info(
      "data: {} tokens an epoch, {} tokens a step; matrix products peak at {:.0f} GFLOP/s",
      FormatCount(static_cast<double>(stream_->epoch_tokens())),
      FormatCount(static_cast<double>(config_.global_batch_size()) * config_.data().seq_len()),
      peak_flops_ / 1e9);
}

spdlog::logger& Trainer::Log() {
  if (progress_.has_value()) progress_->Finish();
  return *options_.log;
}

void Trainer::ReportMemory() const {
  const int64_t peak = ReadResidentMemory().peak, planned = plan_.total();
  options_.log->info("peak memory {} resident, {} planned ({:.0f}%); {} in tensors",
                     FormatBytes(peak), FormatBytes(planned),
                     100 * static_cast<double>(peak) / static_cast<double>(planned),
                     FormatBytes(static_cast<int64_t>(peak_bytes())));
  constexpr double kUneven = 1.5;
  if (ranks_.leader() && ranks_.layout().ep > 1 && expert_load_ > kUneven) {
    options_.log->info(
        "the fullest expert had up to {:.1f} times its even share of the tokens, which the plan "
        "takes it to have",
        expert_load_);
  }
}

void Trainer::Report(const StepReport& report) {
  expert_load_ = std::max(expert_load_, report.expert_load);
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
  if (report.expert_load > 0) {
    metrics.push_back({"router_loss", report.losses.router});
    metrics.push_back({"expert_load_max_over_mean", report.expert_load});
  }
  if (report.dropped_share.has_value()) {
    metrics.push_back({"expert_dropped_share", *report.dropped_share});
  }
  if (report.eval_loss.has_value()) metrics.push_back({"eval_loss", *report.eval_loss});
  // A full disk costs these lines, not the run.
  absl::Status written = metrics_->Write(step_, metrics);
  if (written.ok() && tensorboard_.has_value()) written = tensorboard_->Write(step_, metrics);
  if (!written.ok()) Log().error("{}", Message(written));
  if (progress_.has_value()) {
    progress_->Update(
        {.step = step_, .loss = report.losses.cross_entropy, .tokens_per_second = rate, .mfu = mfu},
        Now());
  }
  if (report.eval_loss.has_value()) {
    Log().info("step {}: held-out loss {:.4f}, perplexity {:.2f}", step_, *report.eval_loss,
               std::exp(*report.eval_loss));
  }
}

}  // namespace cadre
