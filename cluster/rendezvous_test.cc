#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "cluster/rendezvous_bootstrap.h"
#include "cluster/rendezvous_channel.h"
#include "cluster/rendezvous_server.h"
#include "proto/rendezvous.grpc.pb.h"

namespace cadre {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Values = absl::StatusOr<std::vector<std::string>>;

// A port that nobody listens on while this object lives.
class BoundPort {
 public:
  explicit BoundPort(bool listening) : file_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(file_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_TRUE(!listening || listen(file_, 1) == 0);
    getsockname(file_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
  }
  ~BoundPort() { close(file_); }
  int port() const { return port_; }

 private:
  int file_, port_;
};

class RendezvousTest : public testing::Test {
 protected:
  void StartServer(int ranks) {
    auto server = RendezvousServer::Start({.token = "secret", .generation = 4, .ranks = ranks});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  RendezvousBootstrapOptions Options(int rank, int size) const {
    return {.host = "127.0.0.1",
            .port = server_->port(),
            .token = "secret",
            .generation = 4,
            .rank = rank,
            .size = size};
  }
  static Values Gather(const RendezvousBootstrapOptions& options, const std::string& value) {
    auto bootstrap = RendezvousBootstrap::Connect(options);
    return bootstrap.ok() ? (*bootstrap)->AllGather("world", value) : bootstrap.status();
  }
  // As a peer does that keeps to no bound.
  grpc::Status SendUnchecked(const std::string& value) const {
    const RendezvousPeer peer = {.host = "127.0.0.1",
                                 .port = server_->port(),
                                 .token = "secret",
                                 .generation = 4,
                                 .size = 1};
    const auto channel = ConnectRendezvous(peer);
    EXPECT_TRUE(channel.ok()) << channel.status();
    rendezvous::AllGatherRequest request;
    *request.mutable_caller() = MakeCaller(peer);
    request.set_key("world");
    request.set_value(value);
    rendezvous::AllGatherReply reply;
    grpc::ClientContext context;
    return rendezvous::Rendezvous::NewStub(*channel)->AllGather(&context, request, &reply);
  }
  std::unique_ptr<RendezvousServer> server_;
};

TEST_F(RendezvousTest, AllRanksGetAllValues) {
  constexpr int kRanks = 8;
  StartServer(kRanks);
  std::vector<std::future<bool>> ranks;
  for (int rank = 0; rank < kRanks; ++rank) {
    ranks.push_back(std::async(std::launch::async, [this, rank] {
      auto bootstrap = RendezvousBootstrap::Connect(Options(rank, kRanks));
      if (!bootstrap.ok() || (*bootstrap)->rank() != rank || (*bootstrap)->size() != kRanks) {
        return false;
      }
      for (int round = 0; round < 20; ++round) {
        const Values values =
            (*bootstrap)->AllGather(std::to_string(round), fmt::format("{}/{}", rank, round));
        if (!values.ok() || values->size() != kRanks) return false;
        for (int i = 0; i < kRanks; ++i) {
          if ((*values)[static_cast<size_t>(i)] != fmt::format("{}/{}", i, round)) return false;
        }
      }
      return true;
    }));
  }
  for (auto& rank : ranks) EXPECT_TRUE(rank.get());
}

TEST_F(RendezvousTest, BinaryValuesPassAsTheyAre) {
  StartServer(1);
  const std::string value("\0\xff\n\x80", 4);
  const Values values = Gather(Options(0, 1), value);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_THAT(*values, ElementsAre(value));
}

TEST_F(RendezvousTest, ATimeOutNamesWhoIsMissing) {
  StartServer(3);
  auto options = Options(1, 3);
  options.timeout = milliseconds(50);
  const Values values = Gather(options, "v");
  EXPECT_EQ(values.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Message(values.status()),
            fmt::format("rendezvous 127.0.0.1:{}: world: after 0.05 s ranks 0, 2 of 3 did not come",
                        server_->port()));
}

TEST_F(RendezvousTest, StrangersAreRefused) {
  StartServer(2);
  const auto refused = [&](auto change) {
    auto options = Options(1, 2);
    change(options);
    return Message(Gather(options, "v").status());
  };
  EXPECT_THAT(refused([](auto& o) { o.token = "other"; }), HasSubstr("token is another one"));
  EXPECT_THAT(refused([](auto& o) { o.token = "secre"; }), HasSubstr("token is another one"));
  EXPECT_THAT(refused([](auto& o) { o.token = ""; }), HasSubstr("token is another one"));
  EXPECT_THAT(refused([](auto& o) { o.token = "secretsecret"; }), HasSubstr("another one"));
  EXPECT_THAT(refused([](auto& o) { o.generation = 3; }),
              HasSubstr("rank 1: it is of start 3 of the job; start 4 runs"));
  EXPECT_THAT(refused([](auto& o) { o.size = 4; }),
              HasSubstr("rank 1: it says that there are 4 ranks, the job has 2"));
  EXPECT_THAT(refused([](auto& o) { o.rank = 7; }), HasSubstr("rank 7: ranks are 0 to 1"));
}

TEST_F(RendezvousTest, ANumberBelongsToOneProcess) {
  StartServer(2);
  auto first = RendezvousBootstrap::Connect(Options(0, 2));
  ASSERT_TRUE(first.ok());
  // It is known once its call has failed or been answered.
  EXPECT_FALSE((*first)->AllGather("", "v").ok());
  const Values second = Gather(Options(0, 2), "v");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Message(second.status()), HasSubstr("two processes say that they are rank 0"));
}

TEST_F(RendezvousTest, AValueOverTheBoundIsRefused) {
  StartServer(1);
  const std::string over((1 << 20) + 1, 'v');
  EXPECT_EQ(Message(Gather(Options(0, 1), over).status()),
            "rank 0: world: a value of 1048577 bytes; 1048576 are allowed");
  EXPECT_THAT(SendUnchecked(over).error_message(), HasSubstr("1048576 are allowed"));
  EXPECT_EQ(SendUnchecked(std::string(8 << 20, 'v')).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(RendezvousTest, AServerThatEndsEndsTheWait) {
  StartServer(2);
  auto bootstrap = RendezvousBootstrap::Connect(Options(0, 2));
  ASSERT_TRUE(bootstrap.ok());
  auto waiting =
      std::async(std::launch::async, [&] { return (*bootstrap)->AllGather("world", ""); });
  server_.reset();
  const Values values = waiting.get();
  EXPECT_EQ(values.status().code(), absl::StatusCode::kUnavailable) << values.status();
}

TEST(RendezvousServer, APortInUseIsOneLine) {
  const BoundPort port(true);
  const auto server = RendezvousServer::Start({.port = port.port(), .ranks = 1});
  EXPECT_EQ(server.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(
      Message(server.status()),
      fmt::format("rendezvous 127.0.0.1:{}: the port is in use; choose another one", port.port()));
  const auto first = RendezvousServer::Start({.ranks = 1});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(RendezvousServer::Start({.port = (*first)->port(), .ranks = 1}).status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST(RendezvousServer, BadOptionsAreRefused) {
  EXPECT_THAT(RendezvousServer::Start({.ranks = 65537}).status().message(),
              HasSubstr("65537 ranks: 1 to 65536"));
  EXPECT_THAT(RendezvousServer::Start({.host = "192.0.2.1", .ranks = 1}).status().message(),
              HasSubstr("does not have that address"));
}

TEST(RendezvousBootstrap, NobodyAnswers) {
  const BoundPort port(false);
  const auto bootstrap = RendezvousBootstrap::Connect({.host = "127.0.0.1",
                                                       .port = port.port(),
                                                       .rank = 0,
                                                       .size = 2,
                                                       .timeout = milliseconds(100)});
  EXPECT_EQ(bootstrap.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Message(bootstrap.status()),
            fmt::format("rendezvous: nobody answers at 127.0.0.1:{} after 0.1 s", port.port()));
}

TEST(Endpoint, IsReadAndWritten) {
  EXPECT_EQ(EndpointOf("a", 1), "a:1");
  EXPECT_EQ(EndpointOf("::1", 1), "[::1]:1");
  const auto parsed = [](const std::string& text) {
    const auto endpoint = ParseEndpoint("--rdzv-endpoint", text);
    return endpoint.ok() ? fmt::format("{} {}", endpoint->host, endpoint->port)
                         : Message(endpoint.status());
  };
  EXPECT_EQ(parsed("host:80"), "host 80");
  EXPECT_EQ(parsed("host"), "host 29500");
  EXPECT_EQ(parsed("[::1]:80"), "::1 80");
  EXPECT_EQ(parsed("::1"), "::1 29500");
  EXPECT_EQ(parsed(":80"), "--rdzv-endpoint :80: HOST:PORT expected");
  for (const char* wrong : {"host:", "host:0", "host:65536", "host:8o", "[::1]80"}) {
    EXPECT_EQ(parsed(wrong), fmt::format("--rdzv-endpoint {}: a port is 1 to 65535", wrong));
  }
  EXPECT_TRUE(IsLoopback("127.0.0.1") && IsLoopback("localhost") && IsLoopback("::1"));
  EXPECT_FALSE(IsLoopback("10.0.0.1") || IsLoopback("0.0.0.0"));
}

}  // namespace
}  // namespace cadre
