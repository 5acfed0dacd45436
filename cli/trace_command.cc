#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "core/status.h"
#include "parallel/rank_list.h"
#include "parallel/trace_merge.h"

namespace cadre::cli {
namespace {

struct MergeFlags {
  std::vector<std::string> parts;
  std::string output;
};

absl::Status RunMerge(const MergeFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(const MergedTrace merged, MergeTraces(flags.parts, flags.output));
  std::printf("%s: %s\n%s", flags.output.c_str(), RankList("rank", merged.ranks).c_str(),
              ToTable(merged.totals).c_str());
  return absl::OkStatus();
}

}  // namespace

void AddTraceCommand(CLI::App& root, absl::Status* status) {
  CLI::App* command = root.add_subcommand("trace", "Work with traces of runs");
  command->require_subcommand(1);
  auto flags = std::make_shared<MergeFlags>();
  CLI::App* merge = command->add_subcommand(
      "merge", "Put the parts that ranks wrote (FILE.rankN) on one timeline");
  merge->add_option("PARTS", flags->parts, "Parts of one run, whole or cut short")->required();
  merge->add_option("-o,--output", flags->output, "The merged trace (opens in Perfetto)")
      ->required();
  merge->callback([flags, status] { *status = RunMerge(*flags); });
}

}  // namespace cadre::cli
