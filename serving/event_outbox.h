// EventOutbox: the events of one step, gathered so that each sink is called at most once a step.
// Engine thread only.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "serving/request.h"

namespace cadre {

class EventOutbox {
 public:
  void Add(const std::shared_ptr<EventSink>& sink, TokenEvent event);
  // Hands every sink its events, in the order in which they were added.
  void Flush();

 private:
  std::vector<std::pair<std::shared_ptr<EventSink>, std::vector<TokenEvent>>> events_;
};

}  // namespace cadre
