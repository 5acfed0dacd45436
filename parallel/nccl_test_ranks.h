// Ranks as threads with a GPU each, or with what stands in for one.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "parallel/nccl_fake.h"
#include "parallel/test_ranks.h"

namespace cadre {

struct DeviceRank {
  World& world;
  NcclDevice& device;
  HostAllocator memory;

  std::unique_ptr<Communicator> NewGroup(const std::string& name, const std::vector<int>& ranks) {
    auto group = world.NewDeviceGroup(name, ranks);
    EXPECT_TRUE(group.ok()) << Message(group.status());
    return group.ok() ? std::move(*group) : nullptr;
  }
  Tensor Empty(const Shape& shape, DType dtype) {
    return Tensor::Empty(device.memory(), shape, dtype);
  }
  Tensor Upload(const Tensor& host) {
    Tensor there = Empty(host.shape(), host.dtype());
    EXPECT_TRUE(device.Copy(host, there).ok());
    return there;
  }
  Tensor Download(const Tensor& there) {
    Tensor host = Tensor::Empty(memory, there.shape(), there.dtype());
    EXPECT_TRUE(device.Copy(there, host).ok());
    return host;
  }
  Tensor Filled(const Shape& shape, int32_t value) {
    Tensor host = Tensor::Empty(memory, shape, DType::kI32);
    std::fill_n(host.data<int32_t>(), host.numel(), value);
    return Upload(host);
  }
};

// device_of makes a rank's device, on the rank's thread.
using DeviceOf = std::function<absl::StatusOr<std::shared_ptr<NcclDevice>>(int rank)>;

inline void RunDeviceRanks(int size, const DeviceOf& device_of,
                           const std::function<void(DeviceRank&)>& body,
                           std::chrono::milliseconds timeout = std::chrono::minutes(2)) {
  ThreadRendezvous rendezvous(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      ThreadBootstrap bootstrap(rendezvous, r, size);
      auto device = device_of(r);
      ASSERT_TRUE(device.ok()) << Message(device.status());
      auto world = World::Create(bootstrap, {.timeout = timeout, .nccl = *device});
      ASSERT_TRUE(world.ok()) << Message(world.status());
      DeviceRank rank{**world, **device, {}};
      body(rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

inline DeviceOf Fakes(FakeNccl& nccl) {
  return [&nccl](int rank) { return std::make_shared<FakeNcclDevice>(nccl, rank); };
}

}  // namespace cadre
