// What a launcher says of the failure that ended its job. Private to this folder.
#pragma once

#include <string>

#include "proto/rendezvous.pb.h"

namespace cadre {

// "rank 3 was killed by signal 9 (SIGKILL)", with its node where there are several.
std::string Describe(const rendezvous::Failure& failure, int nodes);
int ExitCode(const rendezvous::Failure& failure);

}  // namespace cadre
