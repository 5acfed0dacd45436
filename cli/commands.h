// The program's verbs. Each AddXCommand adds one subcommand to `root`; when the user chose it, its
// callback runs and leaves its outcome in `*status`, which main turns into the exit code:
// 0 done, 2 wrong usage or config (kInvalidArgument), 1 anything else; of `train`, 3 for a peer
// that is lost or does not come, 4 where bad steps or data stopped it; `launch` has its ranks'.
//
// With --json a command prints one JSON document on standard output and nothing else there; logs
// and progress go to standard error.
#pragma once

#include <absl/status/status.h>

#include <optional>

namespace CLI {
class App;
}

namespace cadre::cli {

// An exit code that a failed status carries.
absl::Status WithExitCode(absl::Status status, int code);
std::optional<int> GetExitCode(const absl::Status& status);

void AddCheckpointCommand(CLI::App& root, absl::Status* status);
void AddDataCommand(CLI::App& root, absl::Status* status);
void AddGenerateCommand(CLI::App& root, absl::Status* status);
void AddScheduleCommand(CLI::App& root, absl::Status* status);
void AddLaunchCommand(CLI::App& root, absl::Status* status);
void AddPlanCommand(CLI::App& root, absl::Status* status);
void AddServeCommand(CLI::App& root, absl::Status* status);
void AddTraceCommand(CLI::App& root, absl::Status* status);
void AddTrainCommand(CLI::App& root, absl::Status* status);
void AddVersionCommand(CLI::App& root, absl::Status* status);
void AddScoreCommand(CLI::App& root, absl::Status* status);
void AddEvalCommand(CLI::App& root, absl::Status* status);
void AddTokenizerCommand(CLI::App& root, absl::Status* status);

// Every verb, in the order of the help text.
void AddCommands(CLI::App& root, absl::Status* status);

}  // namespace cadre::cli
