// ModelHome: the model that an engine serves, and how to load it again after its memory was given
// up. One thread at a time (after the start the engine's).
#pragma once

#include <functional>
#include <memory>

#include "core/host_allocator.h"
#include "model/model.h"

namespace cadre {

class ModelHome {
 public:
  // Loads the model with memory of the allocator, which lives as long as the home.
  using Load = std::function<absl::StatusOr<std::unique_ptr<Model>>(Allocator&)>;

  // Loads once. Errors as `load`'s.
  static absl::StatusOr<std::unique_ptr<ModelHome>> Open(Load load);
  // A model that others own and that cannot be given up; it outlives the home.
  static std::unique_ptr<ModelHome> Of(Model& model);

  // Null while it is given up.
  Model* model() const { return model_; }
  bool reloadable() const { return load_ != nullptr; }

  // Gives the model and its memory up; it is reloadable.
  void Drop();
  // Loads it again. Errors as Load's; kInvalidArgument where its config is another one now. There
  // is no model then.
  absl::Status Reload();

 private:
  ModelHome() = default;

  Load load_;
  HostAllocator allocator_;
  std::unique_ptr<Model> owned_;
  Model* model_ = nullptr;
  std::string config_;  // config.json as it was at first
};

}  // namespace cadre
