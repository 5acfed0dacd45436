// Where a run continues: the newest good checkpoint, its state, and what is set aside.
#include <filesystem>

#include <spdlog/spdlog.h>

#include "core/config.h"
#include "parallel/activity.h"
#include "training/checkpoint_weights.h"
#include "training/trainer.h"

namespace cadre {
namespace {

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

// A run that begins at step 0 in a used folder sets what it finds aside, so that no later resume
// mixes the two.
absl::Status Trainer::StartAnew(const std::string& root) {
  if (!std::filesystem::exists(root)) return absl::OkStatus();
  CADRE_ASSIGN_OR_RETURN(auto abandoned, AbandonLaterCheckpoints(root, -1));
  for (const std::string& name : abandoned) options_.log->warn("{}/{} was set aside", root, name);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<FoundCheckpoint>> Trainer::FindResumePoint(const std::string& root) {
  std::vector<std::string> passed_over;
  const auto warn = [&](const std::string& why) {
    passed_over.push_back(why);
    if (ranks_.leader()) options_.log->warn("checkpoint passed over: {}", why);
  };
  CADRE_ASSIGN_OR_RETURN(auto found, FindGoodCheckpoint(root, warn, ranks_.checkpoint_group()));
  if (found.has_value() || passed_over.empty()) return found;
  return DataLoss(
      "{}: none of its {} checkpoints is whole, the newest because of {}; --resume "
      "never sets them aside",
      root, passed_over.size(), passed_over.front());
}

absl::Status Trainer::Resume() {
  const std::string root = options_.output + "/checkpoints";
  if (!options_.resume) return ranks_.leader() ? StartAnew(root) : absl::OkStatus();
  RecordActivity(ctx_, "reading a checkpoint", -1);
  CADRE_ASSIGN_OR_RETURN(auto found, FindResumePoint(root));
  if (!found.has_value()) return ranks_.leader() ? StartAnew(root) : absl::OkStatus();
  CADRE_RETURN_IF_ERROR(Restore(*found));
  if (!ranks_.leader()) return absl::OkStatus();
  CADRE_ASSIGN_OR_RETURN(auto abandoned, AbandonLaterCheckpoints(root, step_));
  for (const std::string& name : abandoned) options_.log->warn("{}/{} was set aside", root, name);
  options_.log->info("resumed from {} at step {}", found->path, step_);
  return absl::OkStatus();
}

absl::Status Trainer::Restore(const FoundCheckpoint& found) {
  const CheckpointState& state = found.manifest.state;
  CADRE_RETURN_IF_ERROR(CheckSameData(state.config, config_));
  CADRE_RETURN_IF_ERROR(LoadCheckpoint(found, DumpYaml(model_->config().model),
                                       HfLoadWeights(ctx_, *model_), model_->parameters(),
                                       *optimizer_, ranks_.OwnedShards()));
  model_->parameters().RestoreVersion(state.weight_version);
  step_ = saved_ = state.step;
  tokens_ = state.tokens;
  guard_->Restore(state.guard);
  return absl::OkStatus();
}

}  // namespace cadre
