#include "bench/serve_load_client.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <memory>

namespace cadre::bench {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
template <typename T>
using Task = asio::awaitable<T>;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

struct Connection {
  explicit Connection(asio::io_context& io) : stream(io) {}
  beast::tcp_stream stream;
  beast::flat_buffer buffer;
  bool used = false;
};

// A connection's failure, told from an answer's: a kept connection that the server closed meanwhile
// says nothing about the request, which is then sent again.
struct Attempt {
  bool stale = false;
  std::string error;
};

class Load {
 public:
  Load(const LoadPlan& plan, const ClientOptions& options, LoadResult* result)
      : plan_(plan), options_(options), result_(result) {}

  void Run() {
    error_code error;
    tcp::resolver resolver(io_);
    endpoints_ = resolver.resolve(options_.target.host, options_.target.port, error);
    result_->outcomes.assign(plan_.requests.size(), Outcome{.error = kBrokenOff});
    start_ = Clock::now();
    asio::co_spawn(io_, Dispatch(), asio::detached);
    io_.run();
    result_->seconds = Now();
  }

 private:
  double Now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  Clock::time_point At(double seconds) const {
    return start_ +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }

  Task<void> Dispatch() {
    asio::steady_timer timer(io_);
    for (size_t i = 0; i < plan_.requests.size(); ++i) {
      // Made before its time, so that the request goes out at it.
      std::string message = Message(i);
      timer.expires_at(At(plan_.requests[i].at));
      co_await timer.async_wait(kTuple);
      asio::co_spawn(io_, One(i, std::move(message)), asio::detached);
    }
  }

  std::string Message(size_t index) const {
    const PlannedRequest& planned = plan_.requests[index];
    std::string prompt;
    for (int32_t id : PromptTokens(plan_, index, options_.vocabulary)) {
      if (!prompt.empty()) prompt += ',';
      prompt += std::to_string(id);
    }
    const std::string model =
        options_.model.empty() ? "" : fmt::format(R"("model":"{}",)", options_.model);
    const std::string body = fmt::format(
        R"({{{}"prompt":[{}],"max_tokens":{},"ignore_eos":true,"temperature":0,"stream":true,{})"
        R"("stream_options":{{"include_usage":true}}}})",
        model, prompt, planned.output_tokens,
        options_.names_tokens ? R"("return_token_ids":true,)" : "");
    const std::string key = options_.api_keys.empty() ? ""
                                                      : fmt::format("Authorization: Bearer {}\r\n",
                                                                    options_.api_keys[planned.key]);
    return fmt::format(
        "POST {}/v1/completions HTTP/1.1\r\nHost: {}:{}\r\n{}Content-Type: application/json\r\n"
        "Content-Length: {}\r\n\r\n{}",
        options_.target.path, options_.target.host, options_.target.port, key, body.size(), body);
  }

  Task<void> One(size_t index, std::string message) {
    const PlannedRequest& planned = plan_.requests[index];
    Outcome& outcome = result_->outcomes[index];
    while (true) {
      Outcome tried = {.key = planned.key, .scheduled = planned.at, .sent = Now()};
      std::unique_ptr<Connection> connection = Take();
      Attempt attempt = co_await Try(*connection, message, planned, &tried);
      if (attempt.stale) continue;
      tried.error = attempt.error;
      if (tried.ok()) idle_.push_back(std::move(connection));
      if (tried.last == 0) tried.last = Now();
      outcome = std::move(tried);
      if (options_.enough && options_.enough(outcome)) io_.stop();
      break;
    }
  }

  std::unique_ptr<Connection> Take() {
    if (idle_.empty()) return std::make_unique<Connection>(io_);
    std::unique_ptr<Connection> connection = std::move(idle_.back());
    idle_.pop_back();
    connection->used = true;
    return connection;
  }

  std::string Kind(const char* what, error_code error) const {
    return error == beast::error::timeout ? "timeout"
                                          : fmt::format("{}: {}", what, error.message());
  }

  Task<Attempt> Try(Connection& connection, const std::string& message,
                    const PlannedRequest& planned, Outcome* outcome) {
    beast::tcp_stream& stream = connection.stream;
    stream.expires_at(At(planned.at + options_.timeout_s));
    if (!connection.used) {
      auto [error, endpoint] = co_await stream.async_connect(endpoints_, kTuple);
      if (error) co_return Attempt{.error = Kind("connect", error)};
      error_code ignored;
      stream.socket().set_option(tcp::no_delay(true), ignored);
    }
    auto [error, sent] = co_await asio::async_write(stream, asio::buffer(message), kTuple);
    const bool kept = connection.used && error != beast::error::timeout;
    if (error) co_return Attempt{.stale = kept, .error = Kind("send", error)};
    co_return co_await Read(connection, planned, outcome);
  }

  Task<Attempt> Read(Connection& connection, const PlannedRequest& planned, Outcome* outcome) {
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    auto [error, size] =
        co_await http::async_read_header(connection.stream, connection.buffer, parser, kTuple);
    if (error) {
      const bool kept = connection.used && (error == http::error::end_of_stream ||
                                            error == asio::error::connection_reset);
      co_return Attempt{.stale = kept, .error = Kind("receive", error)};
    }
    // What a refusal says is not needed, and its connection is not kept.
    if (parser.get().result() != http::status::ok) {
      co_return Attempt{.error = fmt::format("HTTP {}", parser.get().result_int())};
    }
    StreamCheck check(&json_);
    char bytes[16384];
    while (!parser.is_done()) {
      parser.get().body() = {.data = bytes, .size = sizeof bytes, .more = true};
      auto [failed, read] =
          co_await http::async_read_some(connection.stream, connection.buffer, parser, kTuple);
      const size_t filled = sizeof bytes - parser.get().body().size;
      check.Feed({bytes, filled}, Now(), outcome);
      if (failed && failed != http::error::need_buffer)
        co_return Attempt{.error = Kind("receive", failed)};
    }
    check.End({.prompt_tokens = planned.prompt_tokens, .output_tokens = planned.output_tokens},
              outcome);
    connection.stream.expires_never();
    if (!parser.get().keep_alive() && outcome->ok()) connection.stream.close();
    co_return Attempt{.error = outcome->error};
  }

  const LoadPlan& plan_;
  const ClientOptions& options_;
  LoadResult* result_;
  asio::io_context io_{1};
  tcp::resolver::results_type endpoints_;
  std::vector<std::unique_ptr<Connection>> idle_;
  simdjson::dom::parser json_;
  Clock::time_point start_;
};

}  // namespace

absl::StatusOr<Target> ParseUrl(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) return InvalidArgument("url: {}, http://HOST:PORT is needed", url);
  std::string rest = url.substr(kScheme.size());
  Target target;
  const size_t slash = rest.find('/');
  if (slash != std::string::npos) target.path = rest.substr(slash);
  while (target.path.ends_with('/')) target.path.pop_back();
  rest = rest.substr(0, slash);
  const size_t colon = rest.rfind(':');
  target.host = rest.substr(0, colon);
  target.port = colon == std::string::npos ? "80" : rest.substr(colon + 1);
  if (target.host.empty() || target.port.empty()) {
    return InvalidArgument("url: {}, http://HOST:PORT is needed", url);
  }
  return target;
}

LoadResult RunPlan(const LoadPlan& plan, const ClientOptions& options) {
  LoadResult result;
  Load(plan, options, &result).Run();
  return result;
}

}  // namespace cadre::bench
