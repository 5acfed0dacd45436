#include "serving/model_home.h"

namespace cadre {

absl::StatusOr<std::unique_ptr<ModelHome>> ModelHome::Open(Load load) {
  std::unique_ptr<ModelHome> home(new ModelHome);
  home->load_ = std::move(load);
  CADRE_RETURN_IF_ERROR(home->Reload());
  return home;
}

std::unique_ptr<ModelHome> ModelHome::Of(Model& model) {
  std::unique_ptr<ModelHome> home(new ModelHome);
  home->model_ = &model;
  return home;
}

void ModelHome::Drop() {
  CADRE_CHECK(reloadable(), "the model cannot be loaded again");
  model_ = nullptr;
  owned_.reset();
  allocator_.Trim();
}

absl::Status ModelHome::Reload() {
  CADRE_CHECK(reloadable() && model_ == nullptr, "the model is loaded");
  absl::StatusOr<std::unique_ptr<Model>> loaded = load_(allocator_);
  if (!loaded.ok()) {
    allocator_.Trim();
    return loaded.status();
  }
  const std::string& config = (*loaded)->config().source;
  if (config_.empty()) config_ = config;
  if (config != config_) {
    loaded->reset();
    allocator_.Trim();
    return InvalidArgument("config.json: another one than when the server started");
  }
  owned_ = *std::move(loaded);
  model_ = owned_.get();
  return absl::OkStatus();
}

}  // namespace cadre
