// Turns SIGTERM and SIGINT into a flag that long-running verbs look at.
#pragma once

#include <atomic>

namespace cadre::cli {

// From now on the first SIGTERM or SIGINT sets the flag, and a second one ends the process at once.
// The flag lives as long as the process.
const std::atomic<bool>& CatchStopSignals();

// Waits until a stop signal came.
void WaitForStopSignal();

}  // namespace cadre::cli
