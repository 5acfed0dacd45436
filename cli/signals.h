// Turns SIGTERM and SIGINT into a flag that long-running verbs look at.
#pragma once

#include <atomic>

namespace cadre::cli {

// From now on the first SIGTERM or SIGINT sets the flag, and a second one ends the process at once;
// of a launcher's ranks it does not: the launcher kills them where they are to end at once, and a
// service manager that signals all processes of a job has each rank signalled twice. The flag lives
// as long as the process.
const std::atomic<bool>& CatchStopSignals();

// Waits until a stop signal came.
void WaitForStopSignal();

}  // namespace cadre::cli
