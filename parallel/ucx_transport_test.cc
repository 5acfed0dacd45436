#include "parallel/ucx_transport.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <barrier>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <thread>

#include "parallel/ucx_address.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;
using Addresses = std::map<int, std::string>;

constexpr std::chrono::seconds kHangs{60};
// Where the others stay.
constexpr std::chrono::milliseconds kLeavesAlone{50};

// One rank's transport, driven by one thread that sleeps between the rings.
class Rank {
 public:
  explicit Rank(int rank, std::chrono::milliseconds leave_within = kHangs) : rank_(rank) {
    auto transport = UcxTransport::Create(
        {.rank = rank, .ring = [this] { Ring(); }, .leave_within = leave_within});
    CADRE_CHECK(transport.ok(), "{}", Message(transport.status()));
    transport_ = *std::move(transport);
  }

  int rank() const { return rank_; }
  UcxTransport& transport() { return *transport_; }
  // Before the bytes of what is under way go.
  void Leave() { transport_.reset(); }

  Transfer* Send(int peer, uint64_t tag, const Bytes& bytes) {
    transport_->Send(peer, tag, bytes, &transfers_.emplace_back());
    return &transfers_.back();
  }
  Transfer* Receive(int peer, uint64_t tag, Bytes& bytes) {
    transport_->Receive(peer, tag, bytes, &transfers_.emplace_back());
    return &transfers_.back();
  }

  // Until `done` or a loss, which is returned.
  std::optional<PeerLoss> Wait(const std::function<bool()>& done) {
    while (true) {
      std::optional<PeerLoss> loss = transport_->Progress();
      if (loss || done()) return loss;
      if (transport_->Arm()) Sleep();
    }
  }
  std::optional<PeerLoss> WaitForAll() {
    return Wait([this] {
      return std::all_of(transfers_.begin(), transfers_.end(), [](auto& t) { return t.done; });
    });
  }
  PeerLoss WaitForLoss() {
    std::optional<PeerLoss> loss = Wait([] { return false; });
    EXPECT_EQ(transport_->Progress()->reason, loss->reason) << "a loss stays";
    return *loss;
  }

  int rings() {
    std::lock_guard lock(mutex_);
    return rings_;
  }
  int arms() const { return arms_; }

 private:
  void Ring() {
    std::lock_guard lock(mutex_);
    ++rings_;
    bell_.notify_all();
  }
  void Sleep() {
    std::unique_lock lock(mutex_);
    ++arms_;
    CADRE_CHECK(bell_.wait_for(lock, kHangs, [this] { return rings_ > heard_; }), "rank {}", rank_);
    heard_ = rings_;
  }

  const int rank_;
  std::mutex mutex_;
  std::condition_variable bell_;
  int rings_ = 0;
  int heard_ = 0;
  int arms_ = 0;
  std::deque<Transfer> transfers_;
  std::unique_ptr<UcxTransport> transport_;
};

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

void ExpectNoLoss(const std::optional<PeerLoss>& loss) {
  EXPECT_FALSE(loss) << "rank " << loss->peer << ": " << loss->reason;
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

// A peer in a process of its own: this program, running DISABLED_Peer. It sends its address as one
// line of hexadecimal digits on descriptor 4, reads this rank's on 3 and then follows its orders.
constexpr int kPeerReads = 3, kPeerWrites = 4;

std::string ReadAddressFrom(int descriptor) {
  std::string text;
  char c = 0;
  while (read(descriptor, &c, 1) == 1 && c != '\n') text.push_back(c);
  std::string address;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    address.push_back(static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16)));
  }
  return address;
}

void WriteAddressTo(int descriptor, const std::string& address) {
  std::string text;
  for (unsigned char byte : address) text += fmt::format("{:02x}", byte);
  text += '\n';
  CADRE_CHECK(write(descriptor, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

class PeerProcess {
 public:
  PeerProcess() {
    int to[2], from[2];
    CADRE_CHECK(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    // Copies first, above the numbers that they are to get.
    const int reads = fcntl(to[0], F_DUPFD_CLOEXEC, 10),
              writes = fcntl(from[1], F_DUPFD_CLOEXEC, 10);
    posix_spawn_file_actions_adddup2(&actions, reads, kPeerReads);
    posix_spawn_file_actions_adddup2(&actions, writes, kPeerWrites);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    std::string program = "/proc/self/exe", disabled = "--gtest_also_run_disabled_tests",
                filter = "--gtest_filter=UcxTransportTest.DISABLED_Peer";
    char* arguments[] = {program.data(), disabled.data(), filter.data(), nullptr};
    CADRE_CHECK(posix_spawn(&pid_, program.c_str(), &actions, nullptr, arguments, environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    for (int descriptor : {to[0], from[1], reads, writes}) close(descriptor);
    writes_ = to[1];
    reads_ = from[0];
  }
  ~PeerProcess() {
    Kill();
    close(reads_);
    close(writes_);
  }

  std::string ReadAddress() { return ReadAddressFrom(reads_); }
  void Connect(Rank& rank) {
    absl::Status status = rank.transport().Connect({{1, ReadAddress()}});
    CADRE_CHECK(status.ok(), "{}", Message(status));
    WriteAddressTo(writes_, rank.transport().address());
  }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  int reads_ = -1;
  int writes_ = -1;
};

TEST(UcxTransportTest, DISABLED_Peer) {
  Rank rank(1);
  WriteAddressTo(kPeerWrites, rank.transport().address());
  CADRE_CHECK(rank.transport().Connect({{0, ReadAddressFrom(kPeerReads)}}).ok());
  Bytes request(1), large(64 << 20), received(64 << 20);
  Transfer* asked = rank.Receive(0, 1, request);
  rank.Receive(0, 2, received);
  rank.Wait([&] { return asked->done; });
  rank.Send(0, 1, request);
  rank.Send(0, 2, large);
  rank.Wait([] { return false; });  // killed here
}

enum class Meanwhile { kNothing, kReceiving, kTransferring };
class UcxKillTest : public testing::TestWithParam<Meanwhile> {};

TEST_P(UcxKillTest, KilledPeerIsReported) {
  PeerProcess peer;
  Rank rank(0);
  peer.Connect(rank);
  Bytes request(1), reply(1), large(64 << 20), received(64 << 20), never(8);
  rank.Send(1, 1, request);
  rank.Receive(1, 1, reply);
  ExpectNoLoss(rank.WaitForAll());
  if (GetParam() == Meanwhile::kTransferring) {
    rank.Send(1, 2, large);
    rank.Receive(1, 2, received);
    rank.transport().Progress();
  }
  if (GetParam() != Meanwhile::kNothing) rank.Receive(1, 3, never);
  peer.Kill();
  const PeerLoss loss = rank.WaitForLoss();
  rank.Leave();
  EXPECT_EQ(loss.peer, 1);
  EXPECT_THAT(loss.reason,
              testing::AnyOf(HasSubstr("its connection failed: "), HasSubstr("ucp_tag_")));
}

TEST(UcxTransportTest, PeerThatDiedBeforeConnectIsReported) {
  Rank rank(0);
  PeerProcess peer;
  const Addresses addresses = {{1, peer.ReadAddress()}};
  peer.Kill();
  // The system may refuse the connection at once or later.
  absl::Status status = rank.transport().Connect(addresses);
  if (status.ok()) {
    EXPECT_EQ(rank.WaitForLoss().peer, 1);
  } else {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(status), HasSubstr("ucp_ep_create to rank 1 "));
  }
}

INSTANTIATE_TEST_SUITE_P(While, UcxKillTest,
                         testing::Values(Meanwhile::kNothing, Meanwhile::kReceiving,
                                         Meanwhile::kTransferring));

}  // namespace
}  // namespace cadre
