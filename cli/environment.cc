#include "cli/environment.h"

#include <unistd.h>

#include <cstdlib>

namespace cadre::cli {

void EnsurePassiveOpenMp(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  setenv("OMP_WAIT_POLICY", "passive", 1);
  execv("/proc/self/exe", argv);
}

}  // namespace cadre::cli
