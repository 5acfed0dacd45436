// One client's connection: reads requests within deadlines and bounds, answers, and notices when
// the client goes away. Private to the HTTP layer (it needs Boost's headers).
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "serving/http/api_keys.h"
#include "serving/http/front_pool.h"
#include "serving/http/http_server.h"
#include "serving/http/openai_service.h"
#include "serving/http/router.h"

namespace cadre {

// What the connections of a server share.
struct HttpShared {
  HttpServerOptions options;
  KeyRing client_keys, admin_keys;
  OpenAiService* service = nullptr;
  FrontPool* pool = nullptr;
  std::atomic<bool> draining{false};
  std::atomic<size_t> body_bytes{0};  // of all the requests that are read or prepared
  std::mutex mutex;
  std::condition_variable idle;
  int in_flight = 0;  // completion requests being answered

  void Begin();
  void End();
};

// What the connections of one listening address share.
struct HttpListener {
  HttpListener(Bind bind, int max_connections) : bind(bind), max_connections(max_connections) {}
  const Bind bind;
  const int max_connections;
  std::atomic<int> connections{0};
};

// What one request's body counts in the sum that the server bounds. Any thread, one at a time.
class BodyShare {
 public:
  explicit BodyShare(HttpShared* shared) : shared_(shared) {}
  BodyShare(BodyShare&& other) noexcept
      : shared_(other.shared_), bytes_(std::exchange(other.bytes_, 0)) {}
  ~BodyShare() { Release(); }

  // False, and as before, where the sum would pass its bound.
  bool GrowTo(size_t bytes);
  void Release();

 private:
  HttpShared* shared_;
  size_t bytes_ = 0;
};

// Runs on the executor of its socket, a strand.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  using Request = boost::beast::http::request<boost::beast::http::string_body>;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  template <typename T>
  using Task = boost::asio::awaitable<T>;

  HttpConnection(Socket socket, HttpListener* listener, HttpShared* shared);
  ~HttpConnection();

  // Until the connection is closed by either side.
  Task<void> Run();

 private:
  // http_connection.cc: reading, deadlines, plain answers.
  Task<bool> ReadHeader(Parser* parser);
  Task<bool> ReadBody(Parser* parser);
  std::optional<ApiError> ReadError(boost::system::error_code error) const;
  std::optional<ApiError> Refusal(const Request& request, const RouteMatch& route) const;
  bool KeyAccepted(const Request& request, const RouteMatch& route) const;
  Task<bool> Handle(Parser* parser);
  Task<bool> AnswerState(Endpoint endpoint);
  Task<bool> AnswerPreflight(const Request& request, const RouteMatch& route);
  Task<bool> Respond(int status, std::string body, std::string_view content_type);
  Task<bool> RespondError(ApiError error);
  Task<bool> RefuseRead(boost::system::error_code error);
  Task<void> Discard();
  Task<bool> Write(std::string_view bytes);
  void StartDeadline(double seconds);
  void StopDeadline();

  // http_answer.cc: completions.
  Task<bool> Generate(std::string body);
  Task<bool> SendWhole(Answer* answer);
  Task<bool> SendStream(Answer* answer);
  Task<bool> WriteEvents(std::string_view events, bool last);
  Task<void> WaitForNews();
  void WatchClient();
  void Watch(Socket::wait_type event);
  void ClientStirred(Socket::wait_type event);
  void WakeUp();
  std::function<void()> Waker();
  ApiError TimedOut() const;

  Socket socket_;
  HttpListener* listener_;
  HttpShared* shared_;
  boost::beast::flat_buffer buffer_;
  boost::asio::steady_timer deadline_;
  boost::asio::steady_timer news_;
  uint64_t deadline_round_ = 0;  // tells a late timer from the current one
  uint64_t watch_round_ = 0;
  bool expired_ = false;
  bool woken_ = false;
  bool client_gone_ = false;
  bool probe_due_ = false;  // the client's input has ended
  bool request_expired_ = false;
  // Of the request being answered.
  BodyShare body_share_;
  bool keep_alive_ = false;
  unsigned version_ = 11;
  std::string_view route_ = "other";
  const ApiEndpoint* endpoint_ = nullptr;  // null where it takes no body
  std::string cors_;                       // header lines for pages of other origins
};

}  // namespace cadre
