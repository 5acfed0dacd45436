#include "cli/commands.h"

#include <CLI/CLI.hpp>

namespace cadre::cli {

void AddCommands(CLI::App& root, absl::Status* status) {
  AddScoreCommand(root, status);
  AddEvalCommand(root, status);
  AddTokenizerCommand(root, status);
  AddCheckpointCommand(root, status);
  AddDataCommand(root, status);
  AddServeCommand(root, status);
  AddGenerateCommand(root, status);
  AddTrainCommand(root, status);
  AddScheduleCommand(root, status);
  AddVersionCommand(root, status);
}

}  // namespace cadre::cli
