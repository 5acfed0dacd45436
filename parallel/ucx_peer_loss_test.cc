#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "parallel/ucx_test_rank.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;

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
                filter = "--gtest_filter=UcxPeerLossTest.DISABLED_Peer";
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
  void Connect(UcxTestRank& rank) {
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

TEST(UcxPeerLossTest, DISABLED_Peer) {
  UcxTestRank rank(1);
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
  UcxTestRank rank(0);
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

TEST(UcxPeerLossTest, PeerThatDiedBeforeConnectIsReported) {
  UcxTestRank rank(0);
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
