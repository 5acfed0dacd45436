// What the program takes from its environment; nothing below cli reads environment variables.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/status.h"

namespace cadre::cli {

// How long OpenMP's threads look for work before they sleep. libgomp's default spins until it
// finds some, up to 9 times slower where ranks share cores; never spinning ("passive") wakes a
// sleeping thread some sixty times for each decoded token, a fifth of the token's time on two
// cores. So: passive, after a few microseconds. libgomp reads OMP_WAIT_POLICY and GOMP_SPINCOUNT
// when it is loaded, so where one of them is missing, sets it and executes this program again with
// the same arguments; returns where both are set, where the policy is another one, or where that
// fails.
void EnsureOpenMpWaits(char** argv);

// The value of a variable; nullopt where it is not set.
std::optional<std::string> Variable(const std::string& name);
// All of them, NAME=value.
std::vector<std::string> AllVariables();

// This machine's name, with its domain where the system knows one. Asks the resolver.
std::string HostName();

// A rank that a launcher started ends with it. kUnavailable: the launcher is gone already.
absl::Status FollowLauncherIfAny();

}  // namespace cadre::cli
