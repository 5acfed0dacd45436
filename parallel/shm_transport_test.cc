// Ranks as threads over one mapping of the segment. World maps it once for each rank, and what one
// rank writes and another reads is then different memory to ThreadSanitizer; here it sees both.
#include "parallel/shm_transport.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <thread>

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/host_allocator.h"
#include "parallel/cpu_communicator.h"

namespace cadre {
namespace {

std::vector<ShmTransport::Peer> Threads(int size) {
  std::vector<ShmTransport::Peer> peers;
  for (int rank = 0; rank < size; ++rank) peers.push_back({rank, getpid()});
  return peers;
}

void RunThreads(int size,
                const std::function<void(const std::shared_ptr<ShmSegment>&, int)>& body) {
  auto created = ShmSegment::Create(size);
  ASSERT_TRUE(created.ok()) << Message(created.status());
  const std::shared_ptr<ShmSegment> segment = *std::move(created);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back([&, rank] { body(segment, rank); });
  for (std::thread& thread : threads) thread.join();
}

// Small messages, and large ones that go around the ring many times.
TEST(ShmTransport, MessagesOfAllSizesBothWays) {
  RunThreads(3, [](const std::shared_ptr<ShmSegment>& segment, int rank) {
    ShmTransport transport(segment, rank, Threads(3));
    for (uint64_t round = 0; round < 20; ++round) {
      std::deque<Transfer> transfers;
      std::deque<std::vector<std::byte>> sent, got;
      std::vector<int> from;
      for (const size_t bytes : {0, 1, 100, 8192, 8193, 300'000}) {
        for (int peer = 0; peer < 3; ++peer) {
          if (peer == rank) continue;
          const uint64_t tag = (round << 20) + bytes;
          sent.emplace_back(bytes, static_cast<std::byte>(rank));
          got.emplace_back(bytes, static_cast<std::byte>(0xff));
          from.push_back(peer);
          transport.Send(peer, tag, sent.back(), &transfers.emplace_back());
          transport.Receive(peer, tag, got.back(), &transfers.emplace_back());
        }
      }
      while (!std::ranges::all_of(transfers, &Transfer::done)) {
        ASSERT_FALSE(transport.Progress());
        std::this_thread::yield();
      }
      for (size_t i = 0; i < got.size(); ++i) {
        const auto filled = static_cast<std::byte>(from[i]);
        ASSERT_EQ(std::ranges::count(got[i], filled), std::ssize(got[i])) << rank << " " << i;
      }
    }
  });
}

// The doorbell and its sleepers, and the first failure's way to those who do not see it.
TEST(ShmTransport, EnginesOnOneSegment) {
  constexpr int kSize = 3;
  RunThreads(kSize, [](const std::shared_ptr<ShmSegment>& segment, int rank) {
    HostAllocator memory;
    const auto recorder = *FlightRecorder::Create("", rank);
    auto transport = std::make_unique<ShmTransport>(segment, rank, Threads(kSize));
    CpuCommunicator::Options options{.name = "all", .number = 0, .rank = rank};
    for (int r = 0; r < kSize; ++r) {
      options.peers.push_back({r, r == rank ? nullptr : transport.get()});
    }
    ProgressEngine::Options parts{.doorbell = &segment->slot(rank).doorbell,
                                  .recorder = recorder.get()};
    parts.transports.push_back(std::move(transport));
    ProgressEngine engine(std::move(parts));
    CpuCommunicator group(engine, std::move(options));
    for (int round = 0; round < 40; ++round) {
      Tensor small = Tensor::Zeros(memory, {100}, DType::kF32);
      Tensor large = Tensor::Zeros(memory, {100'000}, DType::kF32);
      small.data<float>()[0] = large.data<float>()[round] = static_cast<float>(rank + 1);
      const WorkPtr first = group.AllReduce(large, ReduceOp::kSum, {"large"});
      const WorkPtr second = group.AllReduce(small, ReduceOp::kSum, {"small"});
      ASSERT_TRUE(second->Wait().ok());
      ASSERT_TRUE(first->Wait().ok());
      EXPECT_EQ(small.data<float>()[0], 6.0F);
      EXPECT_EQ(large.data<float>()[round], 6.0F);
    }
    if (rank == 1) return;
    const absl::Status status = group.Barrier({"last"})->Wait();
    EXPECT_EQ(Message(status), "rank 1 is lost in barrier 'last' of group all: it has left");
  });
}

// A rank that waits for a peer's GPU has no message of it under way.
TEST(ShmTransport, TheEndOfAWatchedPeersProcessIsALoss) {
  auto segment = ShmSegment::Create(2);
  ASSERT_TRUE(segment.ok()) << Message(segment.status());
  const pid_t peer = fork();
  if (peer == 0) {
    pause();
    _exit(0);
  }
  ShmTransport transport(std::move(*segment), 0, {{4, getpid()}, {7, peer}});
  transport.Watch(7, 1);
  EXPECT_FALSE(transport.CheckPeers().has_value());
  kill(peer, SIGKILL);
  waitpid(peer, nullptr, 0);
  const auto loss = transport.CheckPeers();
  ASSERT_TRUE(loss.has_value());
  EXPECT_EQ(loss->peer, 7);
  EXPECT_EQ(loss->reason, "its process is gone");
  transport.Watch(7, -1);
  EXPECT_FALSE(transport.CheckPeers().has_value());
}

}  // namespace
}  // namespace cadre
