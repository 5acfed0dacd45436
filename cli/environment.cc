#include "cli/environment.h"

#include <netdb.h>
#include <strings.h>
#include <unistd.h>

#include <charconv>
#include <climits>
#include <cstdlib>

#include "cluster/follow_launcher.h"
#include "cluster/rank_environment.h"

namespace cadre::cli {
namespace {

constexpr char kPolicy[] = "OMP_WAIT_POLICY", kSpins[] = "GOMP_SPINCOUNT";

}  // namespace

void EnsureOpenMpWaits(char** argv) {
  const char* policy = std::getenv(kPolicy);
  if (policy != nullptr && strcasecmp(policy, "passive") != 0) return;
  if (policy != nullptr && std::getenv(kSpins) != nullptr) return;
  if (setenv(kPolicy, "passive", 1) != 0 || setenv(kSpins, "300", 0) != 0) return;
  execv("/proc/self/exe", argv);
}

std::optional<std::string> Variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

std::vector<std::string> AllVariables() {
  std::vector<std::string> all;
  for (char** variable = environ; *variable != nullptr; ++variable) all.emplace_back(*variable);
  return all;
}

std::string HostName() {
  char name[HOST_NAME_MAX + 1] = {};
  if (gethostname(name, sizeof name - 1) != 0) return "";
  addrinfo hints = {}, *found = nullptr;
  hints.ai_flags = AI_CANONNAME;
  std::string host = name;
  if (getaddrinfo(name, nullptr, &hints, &found) != 0) return host;
  if (found->ai_canonname != nullptr) host = found->ai_canonname;
  freeaddrinfo(found);
  return host;
}

absl::Status FollowLauncherIfAny() {
  const std::optional<std::string> launcher = Variable(kLauncherVariable);
  if (!launcher) return absl::OkStatus();
  int64_t pid = 0;
  const char* end = launcher->data() + launcher->size();
  if (std::from_chars(launcher->data(), end, pid).ptr != end || pid < 1) {
    return InvalidArgument("{}={}: not a process", kLauncherVariable, *launcher);
  }
  return FollowLauncher(pid);
}

}  // namespace cadre::cli
