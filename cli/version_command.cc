#include <cstdio>
#include <string>

#include <CLI/CLI.hpp>

#include "cli/commands.h"

namespace cadre::cli {

void AddVersionCommand(CLI::App& root, absl::Status* status) {
  CLI::App* command = root.add_subcommand("version", "Print the program's version");
  command->callback([&root, status] {
    std::printf("%s\n", root.version().c_str());
    *status = absl::OkStatus();
  });
}

}  // namespace cadre::cli
