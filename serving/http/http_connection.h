// One client's connection: reads requests within deadlines and bounds, answers, and notices when
// the client goes away. Private to the HTTP layer (it needs Boost's headers).
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "serving/http/client_stream.h"
#include "serving/http/http_shared.h"

namespace cadre {

// Runs on the executor of its socket, a strand.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Socket = ClientStream::Socket;
  using Error = ClientStream::Error;
  using Request = boost::beast::http::request<boost::beast::http::string_body>;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  template <typename T>
  using Task = boost::asio::awaitable<T>;

  HttpConnection(Socket socket, HttpListener* listener, HttpShared* shared);
  ~HttpConnection();

  // Until the connection is closed by either side.
  Task<void> Run();

 private:
  // http_read.cc: requests come in, within deadlines and bounds. False: the connection is to be
  // closed; the client has been told why where that makes sense.
  Task<bool> ReadHeader(Parser* parser);
  Task<bool> ReadBody(Parser* parser);
  Task<Error> ParseHeader(Parser* parser);
  Task<Error> ParseBody(Parser* parser);
  Task<Error> Fill(size_t bytes);
  std::optional<ApiError> ReadError(Error error) const;
  Task<bool> RefuseRead(Error error);
  Task<void> Discard();
  void StartDeadline(double seconds);
  void StopDeadline();

  // http_connection.cc: who may ask what, plain answers, the access log.
  void Begin(const Request& request);
  std::optional<ApiError> Refusal(const Request& request, const RouteMatch& route);
  bool KeyAccepted(const Request& request, const RouteMatch& route);
  Task<bool> Handle(Parser* parser);
  Task<bool> HandleBody(Parser* parser);
  Task<bool> AnswerState(Endpoint endpoint, std::string_view target);
  Task<bool> AnswerPreflight(const Request& request, const RouteMatch& route);
  Task<bool> Respond(int status, std::string body, std::string_view content_type);
  Task<bool> RespondError(ApiError error);
  Task<bool> Write(std::string_view bytes);
  std::string ExtraHeaders() const;
  void Log();

  // http_admin.cc: what operators do to the engine.
  Task<bool> Administer(Endpoint endpoint, std::string_view query);

  // http_answer.cc: completions.
  Task<bool> Generate(std::string body);
  Task<bool> Send(Answer* answer);
  Task<bool> SendWhole(Answer* answer);
  Task<bool> SendStream(Answer* answer);
  Task<std::string> TakeEvents(Answer* answer);
  Task<void> OnFrontPool(std::function<void()> work);
  Task<bool> WriteEvents(std::string_view events, bool last);
  void Account(const Answer& answer);
  void StartClock();
  Task<void> WaitForNews();
  Task<void> WatchClient();
  Task<void> StopWatching();
  void WakeUp();
  std::function<void()> Waker();
  ApiError TimedOut() const;

  ClientStream stream_;
  HttpListener* listener_;
  HttpShared* shared_;
  boost::beast::flat_buffer buffer_;
  boost::asio::steady_timer deadline_;
  boost::asio::steady_timer news_;
  uint64_t deadline_round_ = 0;  // tells a late timer from the current one
  bool expired_ = false;
  bool woken_ = false;
  bool watching_ = false;  // WatchClient runs
  bool watch_ends_ = false;
  bool client_gone_ = false;
  bool probe_due_ = false;  // the client's input has ended
  bool request_expired_ = false;
  // Of the request being answered.
  BodyShare body_share_;
  bool begun_ = false;  // its first bytes have come
  bool keep_alive_ = false;
  bool head_only_ = false;  // asked by HEAD
  unsigned version_ = 11;
  const ApiEndpoint* endpoint_ = nullptr;  // null where it takes no body
  std::string lines_;                      // more header lines, each with its end
  CallInfo call_;
  int retry_after_ = 1;  // of the error that is answered
  AccessRecord record_;
  std::chrono::steady_clock::time_point began_, header_read_;
  uint64_t read_before_ = 0, written_before_ = 0;
};

}  // namespace cadre
