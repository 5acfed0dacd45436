#include "cli/commands.h"

#include <absl/strings/cord.h>

#include <string>

#include <CLI/CLI.hpp>

namespace cadre::cli {
namespace {

constexpr char kExitCode[] = "cadre/exit_code";

}  // namespace

absl::Status WithExitCode(absl::Status status, int code) {
  status.SetPayload(kExitCode, absl::Cord(std::to_string(code)));
  return status;
}

std::optional<int> GetExitCode(const absl::Status& status) {
  const absl::optional<absl::Cord> code = status.GetPayload(kExitCode);
  return code ? std::optional(std::stoi(std::string(*code))) : std::nullopt;
}

void AddCommands(CLI::App& root, absl::Status* status) {
  AddScoreCommand(root, status);
  AddEvalCommand(root, status);
  AddTokenizerCommand(root, status);
  AddCheckpointCommand(root, status);
  AddDataCommand(root, status);
  AddServeCommand(root, status);
  AddGenerateCommand(root, status);
  AddTrainCommand(root, status);
  AddPlanCommand(root, status);
  AddScheduleCommand(root, status);
  AddTraceCommand(root, status);
  AddLaunchCommand(root, status);
  AddVersionCommand(root, status);
}

}  // namespace cadre::cli
