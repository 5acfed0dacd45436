// The input is what a client sends (serving/http/fuzz_front.h). The server answers in HTTP, never
// with 500, and lives on.
#include <cstddef>
#include <cstdint>

#include "serving/http/fuzz_front.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Never torn down: its threads end with the process.
  static const auto* const front = new cadre::FuzzFront();
  front->Try({data, size});
  return 0;
}
