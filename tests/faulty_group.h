// Communicators that do one thing wrong, to see that a test notices: the operations of one group
// whose label begins with a text. No rank waits for a message that never comes.
#pragma once

#include <string>

#include "parallel/layout.h"
#include "parallel/mesh.h"
#include "parallel/world.h"

namespace cadre::testing_run {

struct Fault {
  enum class Kind {
    kNone,
    kDroppedSum,   // a sum is not made
    kAverage,      // it is divided by the number of ranks,
    kUnscaled,     // or multiplied with it, as where such a division is left out
    kShiftedRows,  // rows come in the place of the next
    kWrongGroup,   // run over `other`
    kZeros,        // sent in place of what was to be sent
    kSwapped,      // the first two messages to a rank come in each other's place,
    kTurnedAround  // or all go around a ring the other way; of three ranks and more
  };
  Kind kind = Kind::kNone;
  std::string group;  // "dp_cp", of hybrid sharding "dp_cp_shard", "dp_cp_copy"
  std::string label;  // what OpLabel::what begins with
  // The group that another name has, as a whole where `label` is empty; operations alone need those
  // of the same size and with this rank at the same place, but all-reduces. Empty: this rank at its
  // place, with the others of groups beside its own.
  std::string other = "";
};

// Makes one group more where the fault has another group.
Mesh::Wrap Spoil(const Fault& fault, World& world, const Layout& layout);

}  // namespace cadre::testing_run
