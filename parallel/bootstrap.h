// Bootstrap: how ranks find one another before any transport stands. The launcher's rendezvous
// implements it over gRPC (cluster/), tests with threads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre {

class Bootstrap {
 public:
  virtual ~Bootstrap() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Every rank hands in `mine` under the same `key`, each key once, and gets what all handed in, by
  // rank. Blocks. kDeadlineExceeded names the ranks that did not come; kUnavailable: the rendezvous
  // is gone. One thread calls.
  virtual absl::StatusOr<std::vector<std::string>> AllGather(std::string_view key,
                                                             std::string mine) = 0;
};

}  // namespace cadre
