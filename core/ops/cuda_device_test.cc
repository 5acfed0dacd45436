#include "core/ops/cuda_device.h"

#include <gtest/gtest.h>

namespace cadre::ops {
namespace {

TEST(CudaDevices, CountsNoneOrSaysWhy) {
  CudaDevices devices = FindCudaDevices();
  EXPECT_GE(devices.count, 0);
  EXPECT_EQ(devices.count == 0, !devices.reason.empty()) << devices.reason;
}

}  // namespace
}  // namespace cadre::ops
