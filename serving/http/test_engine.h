// For the front's tests: an engine that answers every request with a fixed text. Tokens are bytes,
// so characters and stop strings lie over token borders.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "serving/grammar/compiled_grammar.h"
#include "serving/request.h"

namespace cadre {

constexpr int32_t kEnd = 256;
constexpr char kReply[] = "H\xc3\xa9llo w\xc3\xb6rld, stop here \xf0\x9f\x98\x80!";

// Answers every request with kReply (or SetReply) and the end token, one token per step and
// sequence. Of a request with a grammar it leaves out what the grammar does not allow.
class TestEngine : public EngineClient {
 public:
  TestEngine() : thread_([this] { Run(); }) {}
  ~TestEngine() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  absl::Status Submit(std::vector<GenerationRequest> requests,
                      std::shared_ptr<EventSink> sink) override {
    std::lock_guard lock(mutex_);
    if (sleep_level_ > 0) return Unavailable("asleep at level {}", sleep_level_);
    if (running_.size() + requests.size() > max_queue_)
      return ResourceExhausted("the queue is full");
    for (GenerationRequest& request : requests) {
      uint64_t id = request.id;
      prompts_.push_back(*request.prompt);
      seeds_.push_back(request.sampling.seed);
      requests_.push_back(request);
      Sequence sequence{std::move(request), sink};
      if (sequence.request.grammar) sequence.matcher.emplace(sequence.request.grammar);
      running_.insert_or_assign(id, std::move(sequence));
    }
    changed_.notify_all();
    return absl::OkStatus();
  }
  void Cancel(uint64_t id) override {
    std::lock_guard lock(mutex_);
    if (running_.contains(id)) cancelled_.insert(id);
    changed_.notify_all();
  }
  // Sleeps when nothing runs any more; what comes meanwhile is refused.
  void Sleep(int level, std::function<void(absl::Status)> done) override {
    std::unique_lock lock(mutex_);
    sleep_level_ = std::max(sleep_level_, level);
    if (!running_.empty()) {
      falling_asleep_.push_back(std::move(done));
      return;
    }
    lock.unlock();
    done(absl::OkStatus());
  }
  void Wake(std::function<void(absl::StatusOr<int64_t>)> done) override {
    std::vector<std::function<void(absl::Status)>> aborted;
    {
      std::lock_guard lock(mutex_);
      sleep_level_ = 0;
      aborted.swap(falling_asleep_);
    }
    for (auto& sleeper : aborted) sleeper(absl::AbortedError("woken before it slept"));
    done(Info().weight_version);
  }
  ModelInfo Info() const override {
    std::unique_lock lock(mutex_);
    ++held_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return !hold_; });
    --held_;
    return info_;
  }
  EngineHealth Health() const override {
    std::lock_guard lock(mutex_);
    if (sleep_level_ == 0) return {.ready = true};
    return {.reason = fmt::format("asleep at level {}", sleep_level_),
            .failure = "/models/tiny: no such folder",
            .sleep_level = falling_asleep_.empty() ? sleep_level_ : 0};
  }
  EngineStats Stats() const override {
    return {.num_requests_running = 3, .step_tokens = 300, .step_counts = {2, 3, 1}};
  }

  void SetReply(std::string reply) {
    std::lock_guard lock(mutex_);
    reply_ = std::move(reply);
  }
  void SetInfo(const ModelInfo& info) {
    std::lock_guard lock(mutex_);
    info_ = info;
  }
  // While paused no step runs.
  void Pause(bool paused) {
    std::lock_guard lock(mutex_);
    paused_ = paused;
    changed_.notify_all();
  }
  void LimitQueue(size_t size) {
    std::lock_guard lock(mutex_);
    max_queue_ = size;
  }
  void FailAt(int step, absl::Status failure = Internal("the engine broke")) {
    std::lock_guard lock(mutex_);
    fail_at_ = step;
    failure_ = std::move(failure);
  }
  // Meanwhile threads that prepare requests wait: they ask for Info.
  void HoldInfo(bool hold) {
    std::lock_guard lock(mutex_);
    hold_ = hold;
    changed_.notify_all();
  }
  void WaitUntilHeld() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return hold_ && held_ > 0; });
  }
  void WaitUntilRunning(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return running_.size() == count; });
  }
  // As an engine does that stops.
  void CancelAll() {
    std::lock_guard lock(mutex_);
    for (const auto& [id, sequence] : running_) cancelled_.insert(id);
    changed_.notify_all();
  }
  size_t num_cancelled() {
    std::lock_guard lock(mutex_);
    return num_cancelled_;
  }
  std::vector<std::vector<int32_t>> prompts() {
    std::lock_guard lock(mutex_);
    return prompts_;
  }
  // What came, in order.
  std::vector<GenerationRequest> requests() {
    std::lock_guard lock(mutex_);
    return requests_;
  }
  std::vector<uint64_t> seeds() {
    std::lock_guard lock(mutex_);
    return seeds_;
  }

 private:
  struct Sequence {
    GenerationRequest request;
    std::shared_ptr<EventSink> sink;
    int step = 0;
    std::optional<TokenMatcher> matcher;
    size_t at = 0;  // in the reply
  };

  int32_t NextToken(Sequence* sequence) const {
    for (; sequence->at < reply_.size(); ++sequence->at) {
      const auto token = static_cast<unsigned char>(reply_[sequence->at]);
      if (sequence->matcher && !sequence->matcher->Accept(token).ok()) continue;
      ++sequence->at;
      return token;
    }
    return kEnd;
  }

  // Every token has logprob -2 and rank 3; its likeliest rivals are a, b, ...
  static void ReportPrompt(const GenerationRequest& request, TokenEvent* event) {
    for (int32_t id : *request.prompt) {
      event->prompt_logprobs.push_back({id, -2, 3});
      event->prompt_top.emplace_back();
      for (int i = 0; i < request.sampling.prompt_logprobs; ++i)
        event->prompt_top.back().push_back({'a' + i, -1.0f - static_cast<float>(i)});
    }
  }

  TokenEvent Step(Sequence* sequence) {
    const SamplingParams& sampling = sequence->request.sampling;
    TokenEvent event{.request_id = sequence->request.id};
    if (cancelled_.erase(event.request_id)) {
      ++num_cancelled_;
      event.finish = FinishReason::kCancelled;
      return event;
    }
    if (sequence->step == fail_at_) {
      event.finish = FinishReason::kError;
      event.error = failure_;
      return event;
    }
    auto at = static_cast<size_t>(sequence->step++);
    if (at == 0) event.cached_tokens = 2;
    if (at == 0 && sampling.prompt_logprobs >= 0) ReportPrompt(sequence->request, &event);
    if (sequence->request.pooling != Pooling::kNone) {
      const auto size = static_cast<float>(sequence->request.prompt->size());
      event.embedding = {3 * size, 0, 4 * size, 0};
    }
    if (sampling.max_tokens == 0) {
      event.finish = FinishReason::kLength;
      return event;
    }
    event.token = NextToken(sequence);
    event.logprob = -0.5f - static_cast<float>(at);
    for (int i = 0; i < sampling.logprobs; ++i)
      event.top.push_back({'a' + i, -1.0f - static_cast<float>(i)});
    bool stops = std::binary_search(sampling.stop_token_ids.begin(), sampling.stop_token_ids.end(),
                                    event.token);
    if (stops) event.finish = FinishReason::kStop;
    if (!stops && sequence->step >= sampling.max_tokens) event.finish = FinishReason::kLength;
    return event;
  }

  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] {
        return stopping_ || !cancelled_.empty() || (!paused_ && !running_.empty());
      });
      if (stopping_) return;
      std::map<std::shared_ptr<EventSink>, std::vector<TokenEvent>> news;
      for (auto it = running_.begin(); it != running_.end();) {
        if (paused_ && !cancelled_.contains(it->first)) {
          ++it;
          continue;
        }
        TokenEvent event = Step(&it->second);
        bool done = event.finish != FinishReason::kNone;
        news[it->second.sink].push_back(std::move(event));
        it = done ? running_.erase(it) : std::next(it);
      }
      changed_.notify_all();
      lock.unlock();
      for (auto& [sink, events] : news) sink->OnStep(std::move(events));
      lock.lock();
      if (!running_.empty()) continue;
      auto asleep = std::exchange(falling_asleep_, {});
      lock.unlock();
      for (auto& done : asleep) done(absl::OkStatus());
      lock.lock();
    }
  }

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::map<uint64_t, Sequence> running_;
  std::set<uint64_t> cancelled_;
  std::string reply_ = kReply;
  ModelInfo info_ = {.max_context = 200,
                     .max_sequence = 200,
                     .vocab_size = 258,
                     .hidden_size = 4,
                     .takes_priority = true,
                     .weight_version = 7};
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<uint64_t> seeds_;
  std::vector<GenerationRequest> requests_;
  size_t num_cancelled_ = 0;
  size_t max_queue_ = 1000;
  int fail_at_ = -1;
  absl::Status failure_;
  bool hold_ = false;
  mutable int held_ = 0;  // threads in Info
  int sleep_level_ = 0;
  std::vector<std::function<void(absl::Status)>> falling_asleep_;
  bool paused_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace cadre
