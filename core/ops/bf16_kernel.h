// Which instructions compute products of bf16. The machine alone decides, so that training and
// serving on one machine agree bit for bit; the choices differ from each other in rounding, and in
// whether denormals count as zero.
#pragma once

#include <cstdint>
#include <vector>

namespace cadre::ops {

enum class Bf16Kernel : uint8_t {
  kSimd,    // fp32 vectors (Highway), on any machine
  kAvx512,  // dot products of pairs in 512-bit vectors
  kAmx,     // tiles, and AVX-512 around them
};

// The best of this machine and process; the first call asks the operating system for tile state.
Bf16Kernel MachineBf16Kernel();

// All that this machine can run, the best last: for tests.
std::vector<Bf16Kernel> MachineBf16Kernels();

}  // namespace cadre::ops
