#include "cluster/launch_failure.h"

#include <cstring>

#include "core/status.h"

namespace cadre {

using rendezvous::Failure;

std::string Describe(const Failure& failure, int nodes) {
  const std::string node = nodes > 1 ? fmt::format(" on node {}", failure.node()) : "";
  const std::string who =
      failure.rank() < 0 ? "the job" : fmt::format("rank {}{}", failure.rank(), node);
  switch (failure.kind()) {
    case Failure::KILLED: {
      const char* name = sigabbrev_np(failure.code());
      return fmt::format("{} was killed by signal {}{}", who, failure.code(),
                         name == nullptr ? "" : fmt::format(" (SIG{})", name));
    }
    case Failure::HUNG:
      return fmt::format("{} hung for longer than --hang-timeout", who);
    case Failure::LAUNCHER_GONE:
      return fmt::format("the launcher of node {}{} is gone", failure.node(),
                         failure.node() == 0 ? ", which hosts the rendezvous," : "");
    case Failure::LEFT_OUT:
      return fmt::format("the job goes on without node {}, which was taken for lost",
                         failure.node());
    default:
      return fmt::format("{} exited with code {}", who, failure.code());
  }
}

int ExitCode(const Failure& failure) {
  switch (failure.kind()) {
    case Failure::KILLED:
      return 128 + failure.code();
    case Failure::EXITED:
      return failure.code();
    default:
      return 1;
  }
}

}  // namespace cadre
