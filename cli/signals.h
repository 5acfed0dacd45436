// Turns SIGTERM and SIGINT into a flag that long-running verbs look at, and SIGHUP into a wish.
#pragma once

#include <atomic>

namespace cadre::cli {

// From now on the first SIGTERM or SIGINT sets the flag, and a second one ends the process at once;
// of a launcher's ranks it does not: the launcher kills them where they are to end at once, and a
// service manager that signals all processes of a job has each rank signalled twice. The flag lives
// as long as the process.
const std::atomic<bool>& CatchStopSignals();

// Whether the first SIGTERM or SIGINT, too, ends the process at once, with exit code 0: where
// nothing is under way that could be finished, and nobody looks at the flag.
void EndAtFirstStop(bool at_once);

// From now on a SIGHUP asks for files to be read again, instead of ending the process.
void CatchReloadSignal();

enum class Signal { kStop, kReload, kFailure };
// Waits for a signal that has not been returned yet; kStop again and again once one came, and so
// kFailure, which comes first.
Signal WaitForSignal();
// From any thread: what WaitForSignal's caller runs has failed.
void ReportFailure();

}  // namespace cadre::cli
