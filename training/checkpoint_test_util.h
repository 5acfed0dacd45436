// A tiny run for checkpoint tests: parameters of every kind, gradients that are a pure function of
// the step, and weights saved as one plain safetensors file.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "core/host_allocator.h"
#include "core/random.h"
#include "core/safetensors.h"
#include "model/hf_config.h"
#include "model/hf_folder.h"
#include "model/tensor_save.h"
#include "proto/train_config.pb.h"
#include "training/checkpoint.h"

namespace cadre {

inline std::vector<ParamSpec> RunSpecs() {
  return {{.name = "embed", .shape = {37, 5}, .decay = DecayKind::kNoDecay},
          {.name = "l0.w", .shape = {21, 13}, .layer = 0},
          {.name = "l0.frozen", .shape = {9}, .layer = 0, .trainable = false},
          {.name = "l0.router_bias", .shape = {4}, .layer = 0, .trainable = false, .fp32 = true},
          {.name = "l1.w", .shape = {3, 5, 2}, .group = ParamGroup::kExpert, .layer = 1}};
}

struct TestRun {
  explicit TestRun(DType dtype, std::vector<ParamSpec> specs = RunSpecs()) {
    for (ParamSpec& spec : specs) {
      if (spec.sources.empty()) spec.sources = {{spec.name, spec.shape}};
      store.Add(std::move(spec));
    }
    store.Allocate(allocator, dtype, {.gradients = true});
    ctx = {.allocator = &allocator, .parameters = &store};
    optimizer = std::move(*MakeOptimizer(config, store, allocator));
    for (ParamId id = 0; id < store.size(); ++id) {
      ForEach(Weight(id), [&](int64_t i) { return RandomKey(1, store.spec(id).name).Normal(i); });
    }
    optimizer->AdoptWeights();
  }

  Tensor Weight(ParamId id) { return store.View(store.buckets()[store.bucket_of(id)].weights, id); }

  template <typename F>
  static void ForEach(const Tensor& tensor, const F& value) {
    VisitFloat(tensor.dtype(), [&]<typename T>(T) {
      for (int64_t i = 0; i < tensor.numel(); ++i) {
        if constexpr (std::is_same_v<T, double>) {
          tensor.data<T>()[i] = value(i);
        } else {
          tensor.data<T>()[i] = T(static_cast<float>(value(i)));
        }
      }
    });
  }

  // One step; also moves the router bias, as the loop does.
  void Step() {
    for (ParamId id = 0; id < store.size(); ++id) {
      if (store.WantsGradient(id)) {
        ForEach(store.Gradient(id),
                [&](int64_t i) { return RandomKey(step + 100, store.spec(id).name).Normal(i); });
      }
    }
    optimizer->Step(ctx, {.lr = 0.01});
    ForEach(Weight(3), [&](int64_t i) { return 0.125 * static_cast<double>((step + i) % 9); });
    ++step;
  }

  CheckpointState State() const {
    return {.step = step,
            .weight_version = store.version(),
            .updates = optimizer->updates(),
            .seed = 7,
            .data_seed = 8,
            .tokens = step * 64,
            .guard = {.norms = {1.5, 0.1}, .skipped_in_row = 2},
            .config = "train_steps: 10\n",
            .model_config = model_config};
  }

  absl::Status SaveWeights(const std::string& folder, std::span<const ParamPiece> weights,
                           Communicator* group) const {
    return SaveTensors(store, weights,
                       {.folder = folder,
                        .type = [](const ParamSpec&, const ParamSource&,
                                   DType dtype) { return ToStoredType(dtype); }},
                       group)
        .status();
  }

  // All of them, into the compute weights.
  absl::Status LoadWholeWeights(const std::string& folder) {
    return cadre::LoadWeights(ctx, folder, HfConfig()).status();
  }

  // Frozen weights alone: the others come from the optimizer's folder.
  absl::Status LoadWeights(const std::string& folder) {
    CADRE_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(folder + "/model.safetensors"));
    const SafetensorsEntry* entry = file.Find("l0.frozen");
    if (entry == nullptr) return NotFound("l0.frozen");
    auto bytes = file.Bytes(*entry);
    std::copy(bytes.begin(), bytes.end(), Weight(2).raw());
    return absl::OkStatus();
  }

  CheckpointSaverOptions SaverOptions(const std::string& root, bool async = false) const {
    return {.root = root,
            .keep_last = 0,
            .async = async,
            .save_weights = [this](const std::string& folder, std::span<const ParamPiece> weights,
                                   Communicator* group) {
              return SaveWeights(folder, weights, group);
            }};
  }

  absl::Status Save(const std::string& root) {
    CheckpointSaver saver(SaverOptions(root), store, *optimizer, allocator);
    saver.Save(ctx, State());
    return saver.Wait();
  }

  absl::Status Load(const FoundCheckpoint& found) {
    CADRE_RETURN_IF_ERROR(LoadCheckpoint(
        found, model_config, [this](const std::string& folder) { return LoadWeights(folder); },
        store, *optimizer));
    step = found.manifest.state.step;
    return absl::OkStatus();
  }

  // Every byte of state.
  std::vector<std::byte> Bytes() const {
    std::vector<std::byte> all;
    auto add = [&](const Tensor& flat, const ParamBucket& bucket) {
      if (!flat.defined()) return;
      for (ParamId id : bucket.params) {
        Tensor view = store.View(flat, id);
        all.insert(all.end(), view.raw(), view.raw() + view.bytes());
      }
    };
    for (const ParamBucket& bucket : store.buckets()) add(bucket.weights, bucket);
    for (const OptimizerSlot& slot : optimizer->Slots()) {
      for (size_t b = 0; b < slot.buckets.size(); ++b) add(slot.buckets[b], store.buckets()[b]);
    }
    return all;
  }

  HostAllocator allocator;
  ParameterStore store;
  config::OptimizerConfig config;
  std::unique_ptr<Optimizer> optimizer;
  Context ctx;
  int64_t step = 0;
  std::string model_config = "model_type: llama\nhidden_size: 8\n";
};

// A fresh folder for the running test.
inline std::string FreshFolder(const std::string& name) {
  std::string folder =
      (std::filesystem::temp_directory_path() / fmt::format("cadre_{}_{}", name, getpid()))
          .string();
  std::filesystem::remove_all(folder);
  return folder;
}

inline std::vector<std::string> NamesIn(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace cadre
