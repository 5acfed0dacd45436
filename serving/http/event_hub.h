// Takes the engine's events, once per step, to the answers that wait for them.
//
// OnStep (engine thread) only hands the step's events over; the hub's own thread detokenizes,
// matches stop strings and passes each sequence's delta to its answer. So the engine never waits
// for text work or for a client.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "serving/http/choice_decoder.h"
#include "serving/request.h"

namespace cadre {

// What one HTTP answer has received and not yet written. The hub fills it; the connection empties
// it and is woken through `wake`, which must only post and not wait.
class AnswerInbox {
 public:
  // `max_bytes` bounds the text that waits for a slow client.
  AnswerInbox(size_t max_bytes, std::function<void()> wake)
      : max_bytes_(max_bytes), wake_(std::move(wake)) {}

  // False when the bound is passed; from then on everything is dropped.
  bool Put(ChoiceDelta delta);
  std::vector<ChoiceDelta> Take();
  bool overflowed() const;

 private:
  const size_t max_bytes_;
  const std::function<void()> wake_;
  mutable std::mutex mutex_;
  std::vector<ChoiceDelta> deltas_;
  size_t bytes_ = 0;
  bool overflowed_ = false;
};

class EventHub : public EventSink {
 public:
  explicit EventHub(EngineClient* engine);
  ~EventHub() override;

  struct Route {
    uint64_t id = 0;
    size_t choice = 0;
    std::unique_ptr<ChoiceDecoder> decoder;
    std::shared_ptr<AnswerInbox> inbox;  // null once released
    // Called on the hub's thread with the engine's event, before it is decoded; may be empty.
    std::function<void(const TokenEvent&)> observe;
  };
  // Must precede Submit of these ids.
  void Add(std::vector<Route> routes);
  // Forgets ids whose submission failed.
  void Remove(const std::vector<uint64_t>& ids);
  // Lets go of the answers of these ids, whose client is gone or content; their events are only
  // observed from now on, up to the last one.
  void Release(const std::vector<uint64_t>& ids);

  void OnStep(std::vector<TokenEvent> events) override;

  // Ends the hub's thread; later events are dropped. The engine may keep its reference.
  void Stop();

 private:
  void Run();
  void Deliver(TokenEvent event);

  EngineClient* const engine_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::vector<TokenEvent>> steps_;
  bool stopping_ = false;
  // Guards the map; a route in use is kept alive by its shared pointer.
  std::mutex routes_mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<Route>> routes_;
  std::thread thread_;
};

}  // namespace cadre
