#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/environment.h"
#include "cluster/rank_environment.h"
#include "core/status.h"

namespace {

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", cadre::Message(status).c_str());
  if (const auto code = cadre::cli::GetExitCode(status)) return *code;
  // What is asked for and not built is asked for again at every start.
  const bool usage = absl::IsInvalidArgument(status) || absl::IsUnimplemented(status);
  return usage ? cadre::kUsageExitCode : 1;
}

// From 1 MiB on, what is freed goes back to the system at once. Left alone, malloc raises the bound
// up to 32 MiB as it goes and keeps what lies under it. Setting it also fixes the free end of the
// heap that malloc keeps, at 128 KiB, which would be given back and faulted in at every step.
void ReturnLargeBlocks() {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 4 << 20);
}

}  // namespace

int main(int argc, char** argv) {
  cadre::cli::EnsureOpenMpWaits(argv);
  ReturnLargeBlocks();
  if (const absl::Status launcher = cadre::cli::FollowLauncherIfAny(); !launcher.ok()) {
    return ExitCode(launcher);
  }
  CLI::App app("Cadre trains and serves large language models and mixtures of experts.", "cadre");
  app.set_version_flag("--version", "cadre " CADRE_VERSION);
  app.require_subcommand(1);
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    return "error: " + cadre::cli::ParseFailure(*failed, error) + "\n";
  });
  absl::Status status;
  cadre::cli::AddCommands(app, &status);
  std::vector<std::string> arguments(argv + 1, argv + std::max(argc, 1));
  if (const absl::Status known = cadre::cli::CheckVerbs(app, arguments); !known.ok()) {
    return ExitCode(known);
  }
  cadre::cli::DropSeparator(&arguments);
  std::ranges::reverse(arguments);  // as parse takes them
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : cadre::kUsageExitCode;
  }
  return ExitCode(status);
}
