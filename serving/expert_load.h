// ExpertLoad: how many tokens the router gave to each expert of each mixture layer, since the
// start. A token counts once for each of its experts.
//
// Every rank of a server counts what it routed itself; rank 0 publishes the sum
// (ServingRanks::SumExpertTokens). One process publishes its own.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "model/decoder.h"
#include "serving/request.h"

namespace cadre {

class ExpertLoad {
 public:
  explicit ExpertLoad(const DecoderSpec& spec);

  // False: the model has no experts.
  bool any() const { return !counts_.empty(); }

  // The thread that runs the forward.
  void Count(std::span<const LayerRouting> routing);
  // By layer, by expert.
  std::span<const int64_t> counts() const { return counts_; }
  // totals: as counts().
  void Publish(std::span<const int64_t> totals);

  // What was published last, mixture layers in order; zeros before. Any thread.
  std::vector<LayerExpertTokens> Read() const;

 private:
  struct Layer {
    int layer;
    size_t begin, experts;  // of counts_
  };

  std::vector<Layer> layers_;
  std::vector<int64_t> counts_;
  mutable std::mutex mutex_;        // guards what follows
  std::vector<int64_t> published_;  // as counts_
};

}  // namespace cadre
