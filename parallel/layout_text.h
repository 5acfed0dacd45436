// Layouts in words, for people.
#pragma once

#include <string>

#include "parallel/layout.h"

namespace cadre {

// "8 ranks, tp 2, dp 4, zero_stage 1": the axes of more than one rank; those of experts where
// `experts`, the model has some.
std::string LayoutText(const Layout& layout, bool experts);

}  // namespace cadre
