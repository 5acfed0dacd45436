#include "serving/event_outbox.h"

#include <algorithm>

namespace cadre {

void EventOutbox::Add(const std::shared_ptr<EventSink>& sink, TokenEvent event) {
  auto it = std::ranges::find(events_, sink, &decltype(events_)::value_type::first);
  if (it == events_.end()) it = events_.insert(events_.end(), {sink, {}});
  it->second.push_back(std::move(event));
}

void EventOutbox::Flush() {
  for (auto& [sink, events] : events_) sink->OnStep(std::move(events));
  events_.clear();
}

}  // namespace cadre
