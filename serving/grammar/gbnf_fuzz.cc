// The input is a grammar. Whatever it is, it is refused or compiled within its limits, and walks
// through its masks go on until the text is whole.
#include "serving/grammar/fuzz_walk.h"
#include "serving/grammar/gbnf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  cadre::FuzzWalk(cadre::ParseGbnf(input), data, size);
  return 0;
}
