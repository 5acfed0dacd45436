#include "cli/environment.h"

#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace cadre::cli {
namespace {

constexpr char kPolicy[] = "OMP_WAIT_POLICY", kSpins[] = "GOMP_SPINCOUNT";

}  // namespace

void EnsureOpenMpWaits(char** argv) {
  const char* policy = std::getenv(kPolicy);
  if (policy != nullptr && std::string_view(policy) != "passive") return;
  if (policy != nullptr && std::getenv(kSpins) != nullptr) return;
  setenv(kPolicy, "passive", 1);
  setenv(kSpins, "300", 0);
  execv("/proc/self/exe", argv);
}

}  // namespace cadre::cli
