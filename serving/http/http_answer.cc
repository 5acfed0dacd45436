// Completion requests on a connection: text work on the pool, admission, and the answer, whole or
// as server-sent events, while watching whether the client is still there.
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <chrono>
#include <utility>

#include "serving/http/http_connection.h"

namespace cadre {
namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

struct PrepareJob {
  PrepareJob(std::string text, BodyShare counted)
      : body(std::move(text)), share(std::move(counted)) {}
  std::string body;
  BodyShare share;
  PreparedRequest prepared;
  std::optional<ApiError> error;
  std::atomic<bool> done{false};
};

}  // namespace

void HttpConnection::WakeUp() {
  woken_ = true;
  news_.cancel();
}

// For other threads: wakes this connection's coroutine if the connection still exists.
std::function<void()> HttpConnection::Waker() {
  return [weak = weak_from_this(), executor = socket_.get_executor()] {
    asio::post(executor, [weak] {
      if (auto self = weak.lock()) self->WakeUp();
    });
  };
}

// Returns after a wake-up that came since the last return, or at the request's deadline.
HttpConnection::Task<void> HttpConnection::WaitForNews() {
  if (!woken_) {
    auto [error] = co_await news_.async_wait(kTuple);
    if (!error && !woken_) request_expired_ = true;
  }
  woken_ = false;
}

void HttpConnection::WatchClient() {
  client_gone_ = probe_due_ = false;
  ++watch_round_;
  Watch(Socket::wait_read);
}

void HttpConnection::Watch(Socket::wait_type event) {
  socket_.async_wait(event, [self = shared_from_this(), event, round = watch_round_](auto error) {
    if (!error && round == self->watch_round_) self->ClientStirred(event);
  });
}

// The end of the client's input does not say that it left: it may only have no more to send. The
// next bytes written tell, for a peer that has closed its socket answers them with a reset. So
// where nothing is to be written soon, a probe is.
void HttpConnection::ClientStirred(Socket::wait_type event) {
  char byte;
  ssize_t size = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  const bool empty = size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  // HTTP/1.0 has no probe; its clients, proxies mostly, end their input when they leave.
  client_gone_ =
      event == Socket::wait_error || (size < 0 && !empty) || (size == 0 && version_ < 11);
  if (!client_gone_) Watch(empty ? Socket::wait_read : Socket::wait_error);
  probe_due_ = !client_gone_ && size == 0;  // else it has sent its next request, which waits
  if (client_gone_ || probe_due_) WakeUp();
}

ApiError HttpConnection::TimedOut() const {
  return {408, fmt::format("the request ran for {} s", shared_->options.request_timeout_s), "",
          "timeout"};
}

HttpConnection::Task<bool> HttpConnection::Generate(std::string body) {
  if (shared_->draining) {
    ApiError error{503, "the server is draining", "", "unavailable"};
    co_return co_await RespondError(std::move(error));
  }
  double timeout = shared_->options.request_timeout_s;
  auto limit = std::chrono::duration<double>(timeout > 0 ? timeout : 1e8);
  news_.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(limit));
  woken_ = false;
  request_expired_ = false;
  auto job = std::make_shared<PrepareJob>(std::move(body), std::move(body_share_));
  OpenAiService* service = shared_->service;
  bool posted = shared_->pool->TryPost([job, service, endpoint = endpoint_, wake = Waker()] {
    job->error = service->Prepare(*endpoint, job->body, &job->prepared);
    std::string().swap(job->body);
    job->share.Release();
    job->done = true;
    wake();
  });
  if (!posted) {
    ApiError error{429, "too many requests are being prepared", "", "queue_full"};
    co_return co_await RespondError(std::move(error));
  }
  while (!job->done && !request_expired_) co_await WaitForNews();
  std::optional<ApiError> error = job->done ? job->error : TimedOut();
  if (!error && job->prepared.body) {
    std::string text = *std::move(job->prepared.body);
    co_return co_await Respond(200, std::move(text), "application/json");
  }
  std::unique_ptr<Answer> answer;
  if (!error) error = service->Admit(std::move(job->prepared), Waker(), &answer);
  if (error) co_return co_await RespondError(*std::move(error));
  WatchClient();
  bool open = answer->stream ? co_await SendStream(answer.get()) : co_await SendWhole(answer.get());
  answer->Abandon();
  // Ends the watch; nothing else is under way on the socket here.
  ++watch_round_;
  error_code ignored;
  socket_.cancel(ignored);
  co_return open && !client_gone_;
}

HttpConnection::Task<bool> HttpConnection::SendWhole(Answer* answer) {
  AnswerWriter& writer = *answer->writer;
  while (true) {
    for (ChoiceDelta& delta : answer->inbox->Take()) writer.Collect(std::move(delta));
    if (writer.done() || !writer.error().ok() || client_gone_ || request_expired_) break;
    if (std::exchange(probe_due_, false)) {
      // An interim answer, which every HTTP/1.1 client must be able to skip.
      bool written = co_await Write("HTTP/1.1 100 Continue\r\n\r\n");
      if (!written) co_return false;
    }
    co_await WaitForNews();
  }
  if (client_gone_) co_return false;
  if (!writer.error().ok()) {
    ApiError error = FromStatus(writer.error());
    co_return co_await RespondError(std::move(error));
  }
  if (!writer.done()) {
    ApiError error = TimedOut();
    co_return co_await RespondError(std::move(error));
  }
  std::string body = writer.Whole();
  co_return co_await Respond(200, std::move(body), "application/json");
}

HttpConnection::Task<bool> HttpConnection::SendStream(Answer* answer) {
  AnswerWriter& writer = *answer->writer;
  if (version_ < 11 || shared_->draining) keep_alive_ = false;
  shared_->service->metrics().HttpResponse(route_, 200);
  std::string head = fmt::format(
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
      "Connection: {}\r\n{}{}\r\n",
      keep_alive_ ? "keep-alive" : "close", version_ < 11 ? "" : "Transfer-Encoding: chunked\r\n",
      cors_);
  bool open = co_await Write(head);
  while (open && !client_gone_) {
    std::string events;
    for (ChoiceDelta& delta : answer->inbox->Take()) events += writer.Stream(std::move(delta));
    bool last = true;
    if (!writer.error().ok()) {
      events += writer.StreamError(FromStatus(writer.error()));
    } else if (writer.done()) {
      events += writer.StreamEnd();
    } else if (request_expired_) {
      events += writer.StreamError(TimedOut());
    } else if (answer->inbox->overflowed()) {
      ApiError slow{408, "the client takes its answer too slowly", "", "slow_client"};
      events += writer.StreamError(slow);
    } else {
      last = false;
    }
    if (std::exchange(probe_due_, false) && events.empty()) events = ":\n\n";  // a comment
    if (!events.empty()) open = co_await WriteEvents(events, last);
    if (last) co_return open&& keep_alive_;
    if (open) co_await WaitForNews();
  }
  co_return false;
}

HttpConnection::Task<bool> HttpConnection::WriteEvents(std::string_view events, bool last) {
  if (version_ < 11) co_return co_await Write(events);
  std::string chunk =
      fmt::format("{:x}\r\n{}\r\n{}", events.size(), events, last ? "0\r\n\r\n" : "");
  co_return co_await Write(chunk);
}

}  // namespace cadre
