// A simulated schedule as a picture: one row a rank, time to the right. Callable from any thread.
#pragma once

#include <string>

#include "parallel/schedule_simulate.h"

namespace cadre {

struct DrawOptions {
  bool colour = false;  // ANSI colours, for a terminal
  int columns = 0;      // at most so wide; 0: as wide as every label needs
};

// Rows of text with a legend. F3 is the forward of microbatch 3, F3b that of the rank's second
// stage; where there is no room a label is cut.
std::string DrawText(const Schedule& schedule, const Simulation& simulation,
                     const DrawOptions& options);

// A self-contained SVG document, for light and dark pages.
std::string DrawSvg(const Schedule& schedule, const Simulation& simulation);

}  // namespace cadre
