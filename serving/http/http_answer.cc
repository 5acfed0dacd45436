// Completion requests on a connection: text work on the pool, admission, and the answer, whole or
// as server-sent events, while watching whether the client is still there.
#include <algorithm>
#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <functional>
#include <utility>
#include <vector>

#include "serving/http/http_connection.h"

namespace cadre {
namespace asio = boost::asio;

namespace {

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
// Of what a client sends while it waits for its answer: its next requests.
constexpr size_t kMaxEarlyBytes = 16 << 10;

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
  return [weak = weak_from_this(), executor = stream_.socket().get_executor()] {
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

// Begins the time that a request may take, and forgets what the last one heard.
void HttpConnection::StartClock() {
  const double timeout = shared_->options.request_timeout_s;
  const std::chrono::duration<double> limit(timeout > 0 ? timeout : 1e8);
  news_.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(limit));
  woken_ = request_expired_ = client_gone_ = probe_due_ = false;
}

// Runs beside the answer. The end of the client's input does not say that it left: it may only have
// no more to send. The next bytes written tell, for a peer that has closed its socket answers them
// with a reset. So where nothing is to be written soon, a probe is.
HttpConnection::Task<void> HttpConnection::WatchClient() {
  Error error;
  while (!error && !watch_ends_ && buffer_.size() < kMaxEarlyBytes) {
    // Only waiting takes no memory for what may come.
    std::tie(error) = co_await stream_.socket().async_wait(Socket::wait_read, kTuple);
    if (error || watch_ends_) break;
    ClientStream::Result read = co_await stream_.ReadSome(buffer_.prepare(4096));
    buffer_.commit(read.size);
    error = read.error;
  }
  const bool ended = error == asio::error::eof;
  if (!watch_ends_ && error != asio::error::operation_aborted) {
    // HTTP/1.0 has no probe; its clients, proxies mostly, end their input when they leave.
    probe_due_ = ended && version_ >= 11;
    client_gone_ = error && !probe_due_;
    if (probe_due_ || client_gone_) WakeUp();
    if (!client_gone_) {
      auto [reset] = co_await stream_.socket().async_wait(Socket::wait_error, kTuple);
      client_gone_ = !reset && !watch_ends_;
    }
  }
  watching_ = false;
  WakeUp();
}

// Nothing else is under way on the socket here.
HttpConnection::Task<void> HttpConnection::StopWatching() {
  watch_ends_ = true;
  stream_.Cancel();
  while (watching_) co_await WaitForNews();
}

ApiError HttpConnection::TimedOut() const {
  return {408, fmt::format("the request ran for {} s", shared_->options.request_timeout_s), "",
          "timeout"};
}

HttpConnection::Task<bool> HttpConnection::Generate(std::string body) {
  StartClock();
  auto job = std::make_shared<PrepareJob>(std::move(body), std::move(body_share_));
  job->prepared.call = std::make_shared<const CallInfo>(call_);
  job->prepared.arrived_ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(header_read_.time_since_epoch()).count();
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
  co_return co_await Send(answer.get());
}

HttpConnection::Task<bool> HttpConnection::Send(Answer* answer) {
  watch_ends_ = false;
  watching_ = true;
  asio::co_spawn(
      stream_.socket().get_executor(), [self = shared_from_this()] { return self->WatchClient(); },
      asio::detached);
  bool open = answer->stream ? co_await SendStream(answer) : co_await SendWhole(answer);
  answer->tally->timed_out = request_expired_;
  answer->Abandon();
  co_await StopWatching();
  Account(*answer);
  co_return open && !client_gone_;
}

void HttpConnection::Account(const Answer& answer) {
  const AnswerTally& tally = *answer.tally;
  record_.prompt_tokens = tally.prompt_tokens;
  record_.generation_tokens = tally.generation_tokens;
  record_.first_token_seconds = tally.first_token_seconds;
  record_.queue_seconds = tally.queue_seconds;
  record_.prefill_seconds = tally.prefill_seconds;
  const bool ended = answer.writer->done() || !answer.writer->error().ok();
  if (!ended) {
    const auto reason = request_expired_             ? ServingMetrics::Abort::kTimeout
                        : answer.inbox->overflowed() ? ServingMetrics::Abort::kSlowClient
                                                     : ServingMetrics::Abort::kClientGone;
    shared_->service->metrics().Aborted(reason);
  }
  record_.finish = FinishName(ended ? tally.finish.load() : FinishReason::kCancelled);
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
    ApiError error = FromFailure(writer.error());
    co_return co_await RespondError(std::move(error));
  }
  if (!writer.done()) {
    ApiError error = TimedOut();
    co_return co_await RespondError(std::move(error));
  }
  auto body = std::make_shared<std::string>();
  std::function<void()> write = [body, writer = answer->writer] { *body = writer->Whole(); };
  co_await OnFrontPool(std::move(write));
  if (client_gone_) co_return false;
  co_return co_await Respond(200, std::move(*body), "application/json");
}

// What has come, as events. Logprobs of a prompt may be many.
HttpConnection::Task<std::string> HttpConnection::TakeEvents(Answer* answer) {
  auto deltas = std::make_shared<std::vector<ChoiceDelta>>(answer->inbox->Take());
  auto events = std::make_shared<std::string>();
  std::function<void()> write = [deltas, events, writer = answer->writer] {
    for (ChoiceDelta& delta : *deltas) *events += writer->Stream(std::move(delta));
  };
  const bool many =
      std::ranges::any_of(*deltas, [](const auto& one) { return !one.prompt_logprobs.empty(); });
  if (many) {
    co_await OnFrontPool(std::move(write));
  } else {
    write();
  }
  co_return std::move(*events);
}

// Does what would keep an I/O thread from its other connections on the front pool; here, where that
// is full. Returns when it is done, even if the client is gone or the request's time is over by
// then. `work` shares what it touches: a server that stops does not wait for this coroutine.
HttpConnection::Task<void> HttpConnection::OnFrontPool(std::function<void()> work) {
  auto done = std::make_shared<std::atomic<bool>>(false);
  const bool posted = shared_->pool->TryPost([work, done, wake = Waker()] {
    work();
    *done = true;
    wake();
  });
  if (!posted) {
    work();
    co_return;
  }
  const auto deadline = news_.expiry();
  news_.expires_at(std::chrono::steady_clock::time_point::max());
  while (!*done) co_await WaitForNews();
  news_.expires_at(deadline);
  woken_ = true;  // the inbox may have called meanwhile
}

HttpConnection::Task<bool> HttpConnection::SendStream(Answer* answer) {
  AnswerWriter& writer = *answer->writer;
  if (version_ < 11 || shared_->leaving) keep_alive_ = false;
  shared_->service->metrics().HttpResponse(record_.route, 200);
  record_.status = 200;
  std::string head = fmt::format(
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
      "Connection: {}\r\n{}{}\r\n",
      keep_alive_ ? "keep-alive" : "close", version_ < 11 ? "" : "Transfer-Encoding: chunked\r\n",
      ExtraHeaders());
  bool open = co_await Write(head);
  while (open && !client_gone_) {
    std::string events = co_await TakeEvents(answer);
    bool last = true;
    if (!writer.error().ok()) {
      events += writer.StreamError(FromFailure(writer.error()));
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
