// --trace FILE of a run. One process writes FILE itself. Over ranks each writes its part beside it,
// FILE.rankN, with its place in the layout and its clock against rank 0's; at the end rank 0 merges
// the parts that lie where it can read them into FILE, and prints what was in flight and how much
// of that was hidden. A run that fails leaves its parts, for `cadre trace merge`.
#pragma once

#include <memory>
#include <string>

#include "core/status.h"
#include "core/trace.h"
#include "parallel/layout.h"
#include "parallel/world.h"

namespace spdlog {
class logger;
}

namespace cadre::cli {

class RunTrace {
 public:
  // world: null for one process; else outlives this, and all its ranks trace or none does.
  static absl::StatusOr<std::unique_ptr<RunTrace>> Create(const std::string& path, World* world,
                                                          const Layout& layout);
  ~RunTrace();

  Trace* trace() { return trace_.get(); }

  // When the run has succeeded, on all ranks.
  absl::Status Finish(spdlog::logger& log);

 private:
  RunTrace(const std::string& path, World* world) : path_(path), world_(world) {}
  absl::Status Describe(const Layout& layout);
  absl::Status Merge(spdlog::logger& log) const;

  const std::string path_;
  World* const world_;
  std::unique_ptr<Communicator> group_;  // all ranks
  std::string run_;
  std::unique_ptr<Trace> trace_;
};

}  // namespace cadre::cli
