#include "tests/training_run.h"

#include <gtest/gtest.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>

#include <vector>

#include "core/config.h"
#include "core/random.h"
#include "training/indexed_dataset.h"

namespace cadre::testing_run {

TempFolder::TempFolder() {
  std::string name = testing::TempDir() + "cadre-XXXXXX";
  CADRE_CHECK(mkdtemp(name.data()) != nullptr, "{}: cannot be made", name);
  path_ = name;
}

TempFolder::~TempFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

absl::Status WriteCorpus(const std::string& prefix, int vocabulary, int documents, uint64_t seed) {
  const RandomKey key(seed, "corpus");
  CADRE_ASSIGN_OR_RETURN(auto writer,
                         IndexedDatasetWriter::Create(prefix, TokenTypeFor(vocabulary)));
  uint64_t draw = 0;
  auto below = [&](double n) { return static_cast<int32_t>(key.Uniform(draw++) * n); };
  for (int d = 0; d < documents; ++d) {
    std::vector<int32_t> ids(20 + below(280));
    int32_t token = below(vocabulary);
    for (int32_t& id : ids) {
      id = token;
      token = static_cast<int32_t>((int64_t{token} * 7 + 3 + below(3)) % vocabulary);
      if (below(10) == 0) token = below(vocabulary);
    }
    CADRE_RETURN_IF_ERROR(writer.AddDocument(ids));
  }
  return writer.Finish();
}

config::TrainConfig ParseTrainConfig(const std::string& yaml) {
  config::TrainConfig config;
  const absl::Status status = ParseYaml(yaml, "test", &config);
  CADRE_CHECK(status.ok(), "{}", Message(status));
  return config;
}

absl::StatusOr<std::unique_ptr<Trainer>> OpenRun(const config::TrainConfig& config,
                                                 const std::string& output, int threads,
                                                 TrainerOptions more) {
  static spdlog::logger quiet("test", std::make_shared<spdlog::sinks::null_sink_mt>());
  more.output = output;
  more.threads = threads;
  if (more.log == nullptr) more.log = &quiet;
  return Trainer::Create(config, more);
}

}  // namespace cadre::testing_run
