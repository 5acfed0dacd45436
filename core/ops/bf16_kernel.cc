#include "core/ops/bf16_kernel.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace cadre::ops {
namespace {

bool HasAvx512Bf16() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
}

bool HasAmx() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

std::vector<Bf16Kernel> MachineBf16Kernels() {
  std::vector<Bf16Kernel> kernels = {Bf16Kernel::kSimd};
  if (!HasAvx512Bf16()) return kernels;
  kernels.push_back(Bf16Kernel::kAvx512);
  if (HasAmx()) kernels.push_back(Bf16Kernel::kAmx);
  return kernels;
}

Bf16Kernel MachineBf16Kernel() {
  static const Bf16Kernel kernel = MachineBf16Kernels().back();
  return kernel;
}

}  // namespace cadre::ops
