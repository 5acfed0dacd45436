// Small training runs for tests of the whole: a folder, a corpus with something to learn, a
// configuration, a trainer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "core/status.h"
#include "proto/train_config.pb.h"
#include "training/trainer.h"

namespace cadre::testing_run {

// Removed with all that is in it.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  std::string path_;
};

// Documents of 20 to 300 tokens from a chain in which every token has a few likely successors, as
// PREFIX.bin and PREFIX.idx.
absl::Status WriteCorpus(const std::string& prefix, int vocabulary, int documents, uint64_t seed);

// From YAML text; the test fails where it is wrong.
config::TrainConfig ParseTrainConfig(const std::string& yaml);

// The trainer shows no progress, and logs nothing but to the log that `more` may have. `more`: what
// else is set, its output and threads apart.
absl::StatusOr<std::unique_ptr<Trainer>> OpenRun(const config::TrainConfig& config,
                                                 const std::string& output, int threads,
                                                 TrainerOptions more = {});

}  // namespace cadre::testing_run
