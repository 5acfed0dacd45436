#include "parallel/ucx_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <barrier>
#include <mutex>
#include <thread>

#include "parallel/ucx_address.h"
#include "parallel/ucx_test_rank.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;
// Where the others stay.
constexpr std::chrono::milliseconds kLeavesAlone{50};

using Rank = UcxTestRank;

// Runs `body` as each of `size` ranks that are connected to one another, as threads.
void RunRanks(int size, const std::function<void(Rank&)>& body,
              std::chrono::milliseconds leave_within = kHangs) {
  std::barrier<> barrier(size);
  Addresses addresses;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      Rank rank(r, leave_within);
      {
        std::lock_guard lock(mutex);
        addresses[r] = rank.transport().address();
      }
      barrier.arrive_and_wait();
      Addresses peers = addresses;
      peers.erase(r);
      absl::Status status = rank.transport().Connect(peers);
      CADRE_CHECK(status.ok(), "{}", Message(status));
      body(rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

Bytes Pattern(size_t size, int from, int to, uint64_t tag) {
  Bytes bytes(size);
  uint32_t state = static_cast<uint32_t>(from * 1000 + to * 100) + static_cast<uint32_t>(tag);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>((state = state * 69069 + 1) >> 24);
  return bytes;
}

// Every rank sends to every other one a message of each size, all at once.
void Exchange(Rank& rank, int size, const std::vector<size_t>& sizes, bool receive_first) {
  std::deque<Bytes> sent, received, expected;
  const auto each = [&](const std::function<void(int, uint64_t)>& post) {
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank.rank()) continue;
      for (uint64_t i = 0; i < sizes.size(); ++i) post(peer, i);
    }
  };
  const auto send = [&](int peer, uint64_t i) {
    sent.push_back(Pattern(sizes[i], rank.rank(), peer, i));
    rank.Send(peer, i, sent.back());
  };
  const auto receive = [&](int peer, uint64_t i) {
    expected.push_back(Pattern(sizes[i], peer, rank.rank(), i));
    received.emplace_back(sizes[i]);
    rank.Receive(peer, i, received.back());
  };
  if (receive_first) each(receive);
  each(send);
  if (!receive_first) each(receive);
  ExpectNoLoss(rank.WaitForAll());
  EXPECT_TRUE(received == expected) << "rank " << rank.rank();
}

class UcxExchangeTest : public testing::TestWithParam<int> {};

TEST_P(UcxExchangeTest, AllSizesInBothDirectionsAtOnce) {
  RunRanks(GetParam(), [&](Rank& rank) {
    for (bool receive_first : {false, true}) {
      Exchange(rank, GetParam(), {0, 1, 4 << 10, 64 << 10, 1 << 20}, receive_first);
    }
    EXPECT_LE(rank.rings(), rank.arms()) << "one ring per Arm at most";
  });
}

TEST_P(UcxExchangeTest, ManyTagsInFlight) {
  std::vector<size_t> sizes(1000);
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = i * 37;
  RunRanks(GetParam(), [&](Rank& rank) { Exchange(rank, GetParam(), sizes, rank.rank() == 0); });
}

INSTANTIATE_TEST_SUITE_P(Ranks, UcxExchangeTest, testing::Values(2, 3));

TEST(UcxTransportTest, LargeMessages) {
  RunRanks(2, [](Rank& rank) { Exchange(rank, 2, {64 << 20}, true); });
}

TEST(UcxTransportTest, ReceivesPostedAfterTheMessageCame) {
  for (size_t size : {0, 1, 4 << 10, 1 << 20}) {
    const uint64_t early = MakeTag(0xfff, 0xfffff, 0xffff), late = MakeTag(0xfff, 0xfffff, 0xfffe);
    RunRanks(2, [&](Rank& rank) {
      const Bytes message = Pattern(size, 0, 1, early), empty;
      if (rank.rank() == 0) {
        rank.Send(1, early, message);
        rank.Send(1, late, empty);
      } else {
        Bytes received(size), none;
        rank.Receive(0, late, none);
        ExpectNoLoss(rank.WaitForAll());
        rank.Receive(0, early, received);
        ExpectNoLoss(rank.WaitForAll());
        EXPECT_TRUE(received == message);
      }
      ExpectNoLoss(rank.WaitForAll());
    });
  }
}

TEST(UcxTransportTest, MessageOfAnotherSizeIsALoss) {
  const std::pair<size_t, size_t> cases[] = {{0, 8}, {8, 0}, {8, 12}, {12, 8}, {2 << 20, 1 << 20}};
  for (auto [sent, due] : cases) {
    for (bool posted_before : {false, true}) {
      std::barrier<> barrier(2);
      RunRanks(2, [&, sent = sent, due = due](Rank& rank) {
        const Bytes message(sent), empty;
        Bytes received(due), none;
        if (rank.rank() == 0) {
          if (posted_before) barrier.arrive_and_wait();
          rank.Send(1, 1, message);
          rank.Send(1, 2, empty);
          const PeerLoss loss = rank.WaitForLoss();
          EXPECT_TRUE(loss.announced);
          EXPECT_EQ(loss.peer, 0);
          EXPECT_EQ(loss.reason, "rank 0 errs");
          rank.Leave();
          return;
        }
        if (!posted_before) {
          rank.Receive(0, 2, none);
          ExpectNoLoss(rank.WaitForAll());
        }
        Transfer* transfer = rank.Receive(0, 1, received);
        if (posted_before) barrier.arrive_and_wait();
        const PeerLoss loss = rank.WaitForLoss();
        EXPECT_EQ(loss.peer, 0);
        EXPECT_EQ(loss.reason, fmt::format("it sent {} bytes where {} were due", sent, due));
        EXPECT_FALSE(loss.announced);
        EXPECT_FALSE(transfer->done);
        rank.transport().GiveUp({.peer = 0, .reason = "rank 0 errs"});
        rank.Leave();
      });
    }
  }
}

TEST(UcxTransportTest, RanksLeaveOneAfterAnother) {
  std::barrier<> barrier(3);
  RunRanks(
      3,
      [&](Rank& rank) {
        Exchange(rank, 3, {1}, true);
        if (rank.rank() == 0) {
          rank.Leave();
          barrier.arrive_and_wait();
          return;
        }
        barrier.arrive_and_wait();
        const int peer = 3 - rank.rank();
        const Bytes message = Pattern(1 << 20, rank.rank(), peer, 5);
        Bytes received(1 << 20);
        rank.Send(peer, 5, message);
        rank.Receive(peer, 5, received);
        ExpectNoLoss(rank.WaitForAll());
        EXPECT_TRUE(received == Pattern(1 << 20, peer, rank.rank(), 5));
      },
      kLeavesAlone);
}

TEST(UcxTransportTest, WhoLeftIsLostToThoseThatNeedIt) {
  for (int when : {0, 1, 2}) {
    std::barrier<> barrier(2);
    RunRanks(
        2,
        [&](Rank& rank) {
          Exchange(rank, 2, {1}, true);
          Bytes received(8);
          if (rank.rank() == 1 && when == 0) rank.Receive(0, 9, received);
          barrier.arrive_and_wait();
          if (rank.rank() == 0) {
            rank.Leave();
            barrier.arrive_and_wait();
            return;
          }
          if (when != 0) {
            barrier.arrive_and_wait();
            ExpectNoLoss(rank.transport().Progress());
            if (when == 1) rank.Receive(0, 9, received);
            if (when == 2) rank.Send(0, 9, received);
          }
          const PeerLoss loss = rank.WaitForLoss();
          EXPECT_EQ(loss.peer, 0);
          EXPECT_EQ(loss.reason, "it has left the world");
          rank.Leave();
          if (when == 0) barrier.arrive_and_wait();
        },
        kLeavesAlone);
  }
}

TEST(UcxTransportTest, EndsWithTransfersUnderWay) {
  RunRanks(2, [](Rank& rank) {
    Bytes large(64 << 20), small(8), received(64 << 20);
    if (rank.rank() == 0) {
      rank.Send(1, 1, large);
      rank.Send(1, 2, small);
      Transfer* first = rank.Receive(1, 3, small);
      ExpectNoLoss(rank.Wait([&] { return first->done; }));
      rank.Receive(1, 4, received);
      rank.Leave();
      return;
    }
    Bytes never(8);  // the large one may be here before rank 0 leaves
    rank.Receive(0, 1, received);
    rank.Receive(0, 5, never);
    rank.Send(0, 3, small);
    const PeerLoss loss = rank.WaitForLoss();
    EXPECT_EQ(loss.peer, 0);
    EXPECT_EQ(loss.reason, "it has left the world");
    rank.Leave();
  });
}

TEST(UcxTransportTest, WhoGivesUpTellsAllPeers) {
  RunRanks(3, [&](Rank& rank) {
    Bytes large(64 << 20), received(64 << 20);
    for (int peer = 0; peer < 3; ++peer) {
      if (peer == rank.rank()) continue;
      rank.Send(peer, 1, large);
      if (rank.rank() != 0) rank.Receive(peer, 1, received);
    }
    if (rank.rank() == 0) {
      ExpectNoLoss(rank.transport().Progress());
      rank.transport().GiveUp({.peer = 7, .reason = std::string(5000, 'x')});
    } else {
      const PeerLoss loss = rank.WaitForLoss();
      EXPECT_TRUE(loss.announced);
      EXPECT_EQ(loss.peer, 7);
      EXPECT_EQ(loss.reason, std::string(1020, 'x'));
      rank.transport().GiveUp(loss);
    }
    rank.Leave();
  });
}

TEST(UcxTransportTest, RefusesAddresses) {
  Rank rank(0);
  const auto connect = [](const std::string& address) {
    Rank other(1);
    return other.transport().Connect({{0, address}});
  };
  std::string changed = rank.transport().address();
  changed[changed.size() / 2] ^= 1;
  for (const std::string& address : {std::string(), std::string("127.0.0.1:80"), changed,
                                     std::string(kMaxUcxAddressBytes + 1, 'x')}) {
    EXPECT_EQ(connect(address).code(), absl::StatusCode::kInvalidArgument) << address.size();
  }
  EXPECT_THAT(Message(connect(WrapUcxAddress(2, "x"))), HasSubstr("it is rank 2's"));
}

// Wrapped as it should be, but nothing that UCX made.
TEST(UcxTransportTest, SurvivesForgedAddresses) {
  Rank genuine(0);
  absl::StatusOr<std::string> bytes =
      UnwrapUcxAddress(0, genuine.transport().address(), genuine.transport().address());
  ASSERT_TRUE(bytes.ok());
  for (const std::string& forged : {bytes->substr(0, 1), bytes->substr(0, 12), std::string("x"),
                                    bytes->substr(0, 1) + std::string(100, '\0'),
                                    bytes->substr(0, 1) + std::string(100, 'x')}) {
    Rank other(1);
    EXPECT_FALSE(other.transport().Connect({{0, WrapUcxAddress(0, forged)}}).ok());
  }
}

TEST(UcxTransportTest, RefusesUnknownDevicesAndRanks) {
  const auto create = [](UcxOptions options) {
    options.ring = [] {};
    return UcxTransport::Create(options).status();
  };
  EXPECT_EQ(Message(create({.rank = 0, .devices = "nic9"})),
            "UCX transport: no device for transports '^shm,self', devices 'nic9'");
  EXPECT_EQ(create({.rank = 0, .transports = "pigeon"}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({.rank = -1}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({.rank = 1 << 15}).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cadre
