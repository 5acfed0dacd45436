// How the prompts that are being read share the tokens of a step that decoding leaves.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cadre {

// left: tokens that each prompt still has to read, in the order of their turns, each at least 1;
// room: tokens to share, at least one for each. The first prompt has up to half of the room, so
// that the longest wait ends soonest; the others share the rest evenly, so that a long prompt
// stalls nobody; what one does not need goes to the others. Every prompt gets at least one token,
// and the sum is the room or all that is left.
std::vector<int64_t> SharePrompts(std::span<const int64_t> left, int64_t room);

}  // namespace cadre
