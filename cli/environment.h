// What the program takes from its environment; nothing below cli reads environment variables.
#pragma once

namespace cadre::cli {

// libgomp reads OMP_WAIT_POLICY when it is loaded, and its default spins: up to 9 times slower
// where ranks share cores. Where the variable is not set, sets it to "passive" and executes this
// program again with the same arguments; returns where it is set already, or where that fails.
void EnsurePassiveOpenMp(char** argv);

}  // namespace cadre::cli
