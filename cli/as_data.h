// A bad model or tokenizer folder is not a wrong command line: whatever its loader calls the error,
// the program exits with 1.
#pragma once

#include "core/status.h"

namespace cadre::cli {

template <typename T>
absl::StatusOr<T> AsData(absl::StatusOr<T> loaded) {
  if (!loaded.ok()) return DataLoss("{}", Message(loaded.status()));
  return loaded;
}

}  // namespace cadre::cli
