#include "core/ops/kernel.h"

namespace cadre::ops {

void NoCudaKernel(const char* op) {
  CADRE_CHECK(false, "{} has no CUDA kernel in this build", op);
  __builtin_unreachable();
}

}  // namespace cadre::ops
