#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.h"
#include "cli/compute_flags.h"
#include "core/context.h"
#include "core/host_allocator.h"
#include "core/progress.h"
#include "core/status.h"
#include "model/model.h"
#include "model/quantized_folder.h"
#include "training/checkpoint_weights.h"

namespace cadre::cli {
namespace {

struct CheckpointFlags {
  std::string path;
  std::string to;
  std::string dtype, weights;
  bool json = false;
};

using Json = nlohmann::ordered_json;

Json Describe(const FoundCheckpoint& found) {
  const CheckpointState& state = found.manifest.state;
  Json files = Json::object();
  int64_t bytes = 0;
  for (const auto& [name, file] : found.manifest.files) {
    files[name] = file.size;
    bytes += file.size;
  }
  return {{"path", found.path},       {"format_version", found.manifest.format_version},
          {"step", state.step},       {"weight_version", state.weight_version},
          {"updates", state.updates}, {"tokens", state.tokens},
          {"seed", state.seed},       {"data_seed", state.data_seed},
          {"bytes", bytes},           {"files", std::move(files)}};
}

void Print(const CheckpointFlags& flags, const Json& json) {
  if (flags.json) {
    std::printf("%s\n", json.dump().c_str());
    return;
  }
  for (const auto& [key, value] : json.items()) {
    if (!value.is_object()) {
      std::string text = value.is_string() ? value.get<std::string>() : value.dump();
      std::printf("%s: %s\n", key.c_str(), text.c_str());
      continue;
    }
    std::printf("%s:\n", key.c_str());
    for (const auto& [name, size] : value.items()) {
      std::printf("  %10s  %s\n", FormatCount(size.get<double>()).c_str(), name.c_str());
    }
  }
}

absl::Status Inspect(const CheckpointFlags& flags) {
  // Only the manifest is read: inspecting must work, and be quick, for a damaged checkpoint too.
  CADRE_ASSIGN_OR_RETURN(const std::string path, NewestCheckpoint(flags.path));
  CADRE_ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(path));
  Print(flags, Describe({path, std::move(manifest)}));
  return absl::OkStatus();
}

absl::Status Verify(const CheckpointFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(const std::string path, NewestCheckpoint(flags.path));
  CADRE_ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(path));
  CADRE_RETURN_IF_ERROR(VerifyFiles(path, manifest));
  Json json = {
      {"path", path}, {"step", manifest.state.step}, {"verified_files", manifest.files.size()}};
  Print(flags, json);
  return absl::OkStatus();
}

// Also of a Hugging Face folder that is no checkpoint.
absl::Status ConvertQuantized(const CheckpointFlags& flags) {
  if (!flags.dtype.empty()) {
    return InvalidArgument("--dtype, --weights: integers are made from bf16; only one is allowed");
  }
  const absl::StatusOr<WeightFormat> format = ParseWeightFormat(flags.weights);
  if (!format.ok() || *format == WeightFormat::kStored) {
    return InvalidArgument("--weights: {}; int8 or int4 is allowed", flags.weights);
  }
  std::string from = flags.path;
  if (!std::filesystem::exists(from + "/config.json") ||
      std::filesystem::exists(from + "/manifest.json")) {
    CADRE_ASSIGN_OR_RETURN(const FoundCheckpoint found, ResolveCheckpoint(flags.path));
    from = found.path;
  }
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = ResolveThreads(0)};
  CADRE_RETURN_IF_ERROR(SaveQuantizedFolder(ctx, from, flags.to, *format));
  Print(flags, {{"from", from}, {"weights", flags.weights}, {"to", flags.to}});
  return absl::OkStatus();
}

absl::Status Convert(const CheckpointFlags& flags) {
  if (!flags.weights.empty()) return ConvertQuantized(flags);
  ConvertCheckpointOptions options{.to = flags.to};
  if (flags.dtype == "bf16") {
    options.type = StoredType::kBF16;
  } else if (flags.dtype == "f32") {
    options.type = StoredType::kF32;
  } else if (!flags.dtype.empty()) {
    return InvalidArgument("--dtype: {}; bf16 or f32 is allowed", flags.dtype);
  }
  CADRE_ASSIGN_OR_RETURN(FoundCheckpoint found, ResolveCheckpoint(flags.path));
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};
  CADRE_RETURN_IF_ERROR(ConvertCheckpoint(ctx, found, options));
  Print(flags, {{"from", found.path}, {"step", found.manifest.state.step}, {"to", flags.to}});
  return absl::OkStatus();
}

CLI::App* AddVerb(CLI::App& parent, const std::string& name, const std::string& help,
                  const std::shared_ptr<CheckpointFlags>& flags) {
  CLI::App* verb = parent.add_subcommand(name, help);
  verb->add_option("checkpoint", flags->path,
                   "A step-NNNNNN folder, or a run's folder, or the folder of its checkpoints: the "
                   "newest in it")
      ->required();
  verb->add_flag("--json", flags->json, "Print one JSON document");
  return verb;
}

}  // namespace

void AddCheckpointCommand(CLI::App& root, absl::Status* status) {
  CLI::App* checkpoint = root.add_subcommand("checkpoint", "Inspect, verify, convert checkpoints");
  checkpoint->require_subcommand(1);
  auto flags = std::make_shared<CheckpointFlags>();
  AddVerb(*checkpoint, "inspect", "Print what the manifest says", flags)->callback([flags, status] {
    *status = Inspect(*flags);
  });
  AddVerb(*checkpoint, "verify", "Check every file against its checksum", flags)
      ->callback([flags, status] { *status = Verify(*flags); });
  CLI::App* convert =
      AddVerb(*checkpoint, "convert",
              "Write a Hugging Face folder; of several checkpoints the newest good one", flags);
  convert->add_option("--to", flags->to, "Folder to write, empty or missing")->required();
  convert->add_option("--dtype", flags->dtype, "bf16 or f32; absent: as the weights are stored");
  convert->add_option("--weights", flags->weights,
                      "int8 or int4: quantize projections ahead; also of a Hugging Face folder");
  convert->callback([flags, status] { *status = Convert(*flags); });
}

}  // namespace cadre::cli
